"""From what the user names (paths, globs, folders, URLs) to streams of bytes: found, fetched, decompressed, unpacked.

Nothing is ever extracted to disk, and nothing is trusted: what a compressed file may inflate to is capped, an archive
with a member that points out of it is refused as a whole, and damage is an `InputError` that names the file.
"""

import bz2
import glob
import gzip
import io
import lzma
import os
import re
import tarfile
import time
import zlib
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

import pyarrow as pa
import xxhash
from datasets import config
from datasets.utils import tqdm
from filelock import FileLock
from huggingface_hub import get_session
from huggingface_hub.errors import HTTPError

from electra_hf.errors import InputError

TEXT_SUFFIXES = {".txt", ".json", ".jsonl", ".ndjson", ".csv", ".tsv", ".parquet", ".tar", ".tgz", ".tbz2", ".txz"}
TAGGED_SUFFIXES = {".txt", ".conll", ".conllu", ".tsv"}
COMPRESSION_SUFFIXES = {".gz", ".bz2", ".xz", ".zst"}

# Text compresses 3 to 10 times, the dullest log some 100 times; a bomb more than 1,000 times.
LARGEST_RATIO = 200
ALWAYS_ALLOWED = 64 << 20  # bytes: below this no ratio does harm

TIMEOUT = 30  # seconds without an answer
MOST_FAILURES = 5  # in a row without one byte more
# Or a server may send a .gz as a "gzip-encoded" text, whose length and offsets mean something else.
PLAIN_BYTES = {"Accept-Encoding": "identity"}


@dataclass(frozen=True)
class Source:
    name: str  # as the user knows it, without the secrets that a URL may carry
    path: Path  # where it lies on this machine


def default_cache() -> Path:
    """Where downloads and prepared corpora go, unless the user says otherwise: beside the library's own caches."""
    return Path(config.HF_DATASETS_CACHE) / "electra_hf"


def find_sources(names: list[str], download_folder: Path, suffixes=TEXT_SUFFIXES) -> list[Source]:
    """Every file that the paths, globs, folders and http(s) URLs name, each once. Raises `InputError`.

    `suffixes` are what to look for in a folder; a file that is named itself may have any.
    """
    sources = {}
    for name in names:
        if re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", name):
            found = [Source(_public_name(name), download(name, download_folder))]
        else:
            found = [Source(str(path), path) for path in _find_paths(name, suffixes)]
        for source in found:
            sources.setdefault(source.path.resolve(), source)
    return list(sources.values())


def _find_paths(name, suffixes):
    path = Path(name).expanduser()
    # A path that exists is meant as it stands, also when it has a bracket or a star in it.
    matches = [path] if path.exists() else [Path(match) for match in sorted(glob.glob(str(path), recursive=True))]
    if not matches:
        raise InputError(
            f"{name}: there is no such file or folder (seen from {Path.cwd()}). Correct the path or glob."
        )
    paths = []
    for match in matches:
        paths += _find_in_folder(match, suffixes) if match.is_dir() else [match]
    return paths


def _find_in_folder(folder, suffixes):
    by_folder = defaultdict(list)
    for path in sorted(folder.rglob("*")):
        suffix = PurePosixPath(inner_name(path.name)).suffix
        if path.is_file() and suffix in suffixes and not path.name.startswith("."):
            by_folder[path.parent].append(path)
    # An unpacked Leipzig corpus has word lists in .txt files beside its sentences.
    paths = []
    for files in by_folder.values():
        is_leipzig = any(_is_sentences(file.name) for file in files)
        paths += [file for file in files if not is_leipzig or _is_sentences(file.name) or not _is_text(file.name)]
    if not paths:
        kinds = " ".join(sorted(suffixes))
        raise InputError(f"{folder}: no corpus file in this folder. Looked for {kinds}, compressed or not.")
    return paths


def inner_name(name: str) -> str:
    """The name of a file without its compression: corpus.txt for corpus.txt.gz, in lower case."""
    path = PurePosixPath(name.lower())
    return str(path.with_suffix("")) if path.suffix in COMPRESSION_SUFFIXES and path.stem != path.suffix else str(path)


def _is_sentences(name):
    return inner_name(name).endswith("-sentences.txt")


def _is_text(name):
    return inner_name(name).endswith(".txt")


def download(url: str, folder: Path) -> Path:
    """Fetch `url` once into `folder`; a download that was cut goes on where it stopped. Raises `InputError`."""
    name = _public_name(url)
    path = folder / f"{xxhash.xxh3_64_hexdigest(url.encode())}-{PurePosixPath(urlsplit(url).path).name or 'download'}"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{path}.lock"):
            try:
                if not path.exists():
                    _fetch(url, name, path)
            except (HTTPError, OSError) as error:
                reason = (str(error).split("\n")[0] or type(error).__name__).replace(url, name)
                raise InputError(
                    f"{name}: cannot be fetched ({reason}). Start again to go on where it stopped, "
                    "or fetch it by hand and give its path."
                ) from None
    return path


def _fetch(url, name, path):
    head = get_session().head(url, headers=PLAIN_BYTES, timeout=TIMEOUT)
    size = int(head.headers.get("Content-Length", 0)) if head.is_success else 0  # 0: not known
    # The version is in the name of the part: the two halves of a file that changed in between are never joined.
    version = f"{head.headers.get('ETag')} {head.headers.get('Last-Modified')} {size}"
    part = path.with_name(f"{path.name}.{xxhash.xxh3_64_hexdigest(version.encode())}.incomplete")
    failures = 0
    with (
        open(part, "ab" if size else "wb") as file,
        tqdm(desc=f"fetching {path.name[17:]}", total=size or None, unit="B", unit_scale=True) as progress,
    ):
        while not size or file.tell() < size:
            start = file.tell()
            try:
                _fetch_rest(url, name, file, progress)
                break
            except HTTPError:
                failures = 0 if file.tell() > start else failures + 1
                if failures == MOST_FAILURES:
                    raise
                time.sleep(1)
    if size and part.stat().st_size != size:
        part.unlink()
        raise OSError(f"{size} bytes were promised, others came")
    os.replace(part, path)


def _fetch_rest(url, name, file, progress):
    """Append what `file` still lacks, or write it anew where the server does not know ranges."""
    start = file.tell()
    headers = PLAIN_BYTES | ({"Range": f"bytes={start}-"} if start else {})
    with get_session().stream("GET", url, headers=headers, timeout=TIMEOUT) as response:
        if not response.is_success:
            raise InputError(f"{name}: the server answered {response.status_code}. Check the address in a browser.")
        if response.status_code != 206:  # Partial Content
            file.seek(0)
            file.truncate()
        progress.reset(progress.total)
        progress.update(file.tell())
        for chunk in response.iter_raw():
            progress.update(file.write(chunk))


def _public_name(url):
    parts = urlsplit(url)
    if parts.scheme.lower() not in ("http", "https") or not parts.hostname:
        raise InputError(f"{parts.scheme}://{parts.hostname or ''}: only http:// and https:// addresses are fetched.")
    # A password or a signed query is for the server alone: this name is printed and saved.
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def open_texts(source: Source) -> Iterator[tuple[str, io.BufferedReader]]:
    """Yield (name, stream) for the text in the file, or for each wanted member of the archive.

    Wanted are the `*-sentences.txt` (the layout of the Leipzig corpora), or every `.txt` where there is none. Both the
    file and a member may be compressed; their first bytes tell, not their names. Raises `InputError`.
    """
    try:
        raw = open(source.path, "rb")
    except OSError as error:
        raise InputError(f"{source.name}: cannot be read ({error.strerror}).") from None
    with raw:
        stream = _decompress(raw, raw, source.name)
        if not _is_tar(stream, source):
            yield source.name, stream
            return
        wanted = _wanted_members(stream, source.name)
        # The second time through: only now is it known that every member is harmless, and which ones are sentences.
        raw.seek(0)
        for member, content in _members(_decompress(raw, raw, source.name), source.name):
            if member.name in wanted:
                name = f"{source.name}: {member.name}"
                yield name, _decompress(io.BufferedReader(_Guarded(content, raw, name)), raw, name)


def _decompress(stream, raw, name):
    head = stream.peek(10)[:10]
    if head.startswith(b"\x1f\x8b"):
        inflated = gzip.GzipFile(fileobj=stream)
    elif head.startswith(b"BZh") and head[4:] == b"1AY&SY":
        inflated = bz2.BZ2File(stream)
    elif head.startswith(b"\xfd7zXZ\x00"):
        inflated = lzma.LZMAFile(stream)
    elif head.startswith(b"\x28\xb5\x2f\xfd"):
        inflated = pa.CompressedInputStream(pa.PythonFile(stream, mode="r"), "zstd")
    elif head.startswith((b"PK\x03\x04", b"7z\xbc\xaf\x27\x1c", b"Rar!")):
        raise InputError(f"{name}: zip, 7z and rar archives are not read. Unpack it and give the folder.")
    else:
        return stream
    return io.BufferedReader(_Guarded(inflated, raw, name), buffer_size=1 << 17)


class _Guarded(io.RawIOBase):
    """A stream that reports damage as `InputError` and stops a decompression bomb; `raw` is the file on disk."""

    def __init__(self, stream, raw, name):
        self.stream, self.raw, self.name, self.total = stream, raw, name, 0

    def readable(self):
        return True

    def readinto(self, buffer):
        try:
            data = self.stream.read(len(buffer))
        except (EOFError, OSError, zlib.error, lzma.LZMAError, tarfile.TarError) as error:
            raise _damaged(self.name, error) from None
        self.total += len(data)
        if self.total > ALWAYS_ALLOWED and self.total > LARGEST_RATIO * self.raw.tell():
            raise InputError(
                f"{self.name}: inflates to more than {LARGEST_RATIO} times its size, as a decompression bomb does. "
                "If it is what you want, decompress it yourself and give the result."
            )
        buffer[: len(data)] = data
        return len(data)


def _damaged(name, error):
    return InputError(f"{name}: damaged or cut short ({error}). Fetch or make the file again.")


class _Member(tarfile.TarInfo):
    @classmethod
    def fromtarfile(cls, archive):
        """As tarfile, but a broken header is an error; tarfile takes one in the middle for the end of the archive."""
        try:
            return super().fromtarfile(archive)
        except tarfile.EOFHeaderError:
            raise
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(str(error)) from None


def _is_tar(stream, source):
    return stream.peek(262)[257:262] == b"ustar" or PurePosixPath(inner_name(source.path.name)).suffix == ".tar"


def _members(stream, name):
    """Yield (member, stream) in the order of the archive, refusing it at the first member that is not plain."""
    try:
        with tarfile.open(fileobj=stream, mode="r|", tarinfo=_Member) as archive:
            for member in archive:
                path = PurePosixPath(member.name)
                if path.is_absolute() or ".." in path.parts:
                    raise InputError(f"{name}: refused, for its member {member.name!r} points out of the archive.")
                if member.issparse() or not (member.isfile() or member.isdir()):
                    raise InputError(f"{name}: refused, for its member {member.name!r} is a link, a device or sparse.")
                if member.isfile():
                    yield member, archive.extractfile(member)
    except InputError:
        raise
    except (tarfile.TarError, OSError, ValueError, OverflowError) as error:
        raise _damaged(name, error) from None


def _wanted_members(stream, name):
    names = [member.name for member, _ in _members(stream, name)]
    # "._NAME" is what macOS adds: attributes, not text.
    names = [name for name in names if not PurePosixPath(name).name.startswith(".")]
    wanted = [name for name in names if _is_sentences(name)] or [name for name in names if _is_text(name)]
    if not wanted:
        raise InputError(f"{name}: no *-sentences.txt and no .txt among its {len(names)} files.")
    return set(wanted)
