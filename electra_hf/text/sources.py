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
import stat
import tarfile
import zlib
from collections import defaultdict
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import pyarrow as pa

from electra_hf.errors import InputError
from electra_hf.text.downloads import asks_for_html, download_all, is_address, looks_like_html, public_name
from electra_hf.text.names import TEXT_SUFFIXES, inner_suffix, is_sentences, is_text, printable

# Text compresses 3 to 10 times, the dullest log some 100 times; a bomb more than 1,000 times.
LARGEST_RATIO = 200
ALWAYS_ALLOWED = 64 << 20  # bytes: below this no ratio does harm


@dataclass(frozen=True)
class Source:
    """A file of text on this machine."""

    name: str  # as the user knows it, without the secrets that a URL may carry
    path: Path  # where it lies


def find_sources(names: list[str], download_folder: Path, suffixes: Collection[str] = TEXT_SUFFIXES) -> list[Source]:
    """Every file that the paths, globs, folders and http(s) URLs name, each once. Raises `InputError`.

    `suffixes` are what to look for in a folder; a file that is named itself may have any. All are regular files: a
    pipe or a device may never end.
    """
    if not all(name.strip() for name in names):
        raise InputError("A path is empty. Give one (was a shell variable not set?), or leave it out.")
    # All of them at once, before anything is read: a dead address fails in seconds, not after an hour of reading.
    fetched = download_all([name for name in names if is_address(name)], download_folder)
    sources = {}
    for name in names:
        if name in fetched:
            found = [Source(public_name(name), fetched[name])]
        else:
            found = [Source(printable(str(path)), path) for path in _find_paths(name, suffixes)]
        for source in found:
            # A folder and a file in it, or two links to one file, are one text; read twice, it would be counted twice.
            sources.setdefault(source.path.resolve(), source)
    return list(sources.values())


def _find_paths(name, suffixes):
    try:
        pattern = os.path.expanduser(name)
        # A path that exists is meant as it stands, also when it has a bracket or a star in it.
        matches = [pattern] if os.path.exists(pattern) else sorted(set(_glob(pattern)))
        paths = []
        for match in map(Path, matches):
            paths += _find_in_folder(match, suffixes) if _is_folder(match) else [match]
    except InputError:
        raise
    except (OSError, ValueError) as error:  # too long, a link to itself, a NUL, what the locale cannot encode
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise InputError(f"{printable(name)}: cannot be looked up ({reason}). Correct the path or glob.") from None
    if not matches:
        raise InputError(
            f"{printable(name)}: there is no such file or folder (seen from {Path.cwd()}). Correct the path or glob."
        )
    return paths


def _glob(pattern):
    """As `glob.glob`, but `**` enters each folder once: two links that lead round would take it for ever."""
    before, stars, after = pattern.partition("**")
    # `a**b` is no walk through folders, but two stars in one name.
    if not stars or not (before == "" or before.endswith(os.sep)) or not (after == "" or after.startswith(os.sep)):
        return glob.glob(pattern)
    matches = []
    for start in glob.glob(before or os.curdir):
        for folder, _ in _walk(start):
            inside = os.path.relpath(folder, start)
            # As `glob` does: hidden folders are named, or they are left out.
            if not any(part.startswith(".") for part in inside.split(os.sep) if part != os.curdir):
                base = glob.escape(os.path.normpath(folder) if before else inside)
                matches += _glob(os.path.normpath(f"{base}{after or os.sep + '*'}"))
    return matches


def _walk(start):
    """Yield (folder, names of its files) for a folder and all below it, through links too, each folder once."""

    def refuse(error):
        raise error

    seen = set()
    for folder, inner_folders, files in os.walk(start, followlinks=True, onerror=refuse):
        status = os.stat(folder)
        if (status.st_dev, status.st_ino) in seen:
            # It was seen under another name: not into it again.
            inner_folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        # The order of a folder differs from one disk to the next, and a run must not.
        inner_folders.sort()
        yield folder, files


def _is_folder(path):
    """Whether this is a folder; if not, it is a regular file. Raises `InputError`."""
    try:
        mode = os.stat(path).st_mode
    except OSError as error:
        what = "a link that leads nowhere" if path.is_symlink() else f"cannot be read ({error.strerror})"
        raise InputError(f"{printable(str(path))}: {what}. Mend or remove it.") from None
    if not stat.S_ISDIR(mode) and not stat.S_ISREG(mode):
        raise InputError(
            f"{printable(str(path))}: neither a file nor a folder, but a pipe, a socket or a device, which may never "
            "end. Write what it gives into a file, and name that."
        )
    return stat.S_ISDIR(mode)


def _find_in_folder(folder, suffixes):
    found = sorted(Path(inside, name) for inside, names in _walk(folder) for name in names if not name.startswith("."))
    by_folder = defaultdict(list)
    for path in found:
        if inner_suffix(path.name) in suffixes and not _is_folder(path):
            by_folder[path.parent].append(path)
    # An unpacked Leipzig corpus has word lists in .txt files beside its sentences.
    paths = []
    for files in by_folder.values():
        is_leipzig = any(is_sentences(file.name) for file in files)
        paths += [file for file in files if not is_leipzig or is_sentences(file.name) or not is_text(file.name)]
    if not paths:
        kinds = " ".join(sorted(suffixes))
        raise InputError(
            f"{printable(str(folder))}: no corpus file in this folder. Looked for {kinds}, compressed or not."
        )
    return paths


def open_texts(source: Source) -> Iterator[tuple[str, io.BufferedReader]]:
    """Yield (name, stream) for the text in the file, or for each wanted member of the archive.

    Wanted are the `*-sentences.txt` (the layout of the Leipzig corpora), or every `.txt` where there is none. Both the
    file and a member may be compressed; their first bytes tell, not their names. Raises `InputError`.
    """
    with _open(source) as raw:
        # A tar in a gzip is both: whether it is a tar can be seen only after it is decompressed.
        stream = _decompress(raw, raw, source.name)
        if not _is_tar(stream, source):
            # One stream, no archive: a text as it is.
            yield source.name, _refuse_html(stream, source.name)
            return
        wanted = _wanted_members(stream, source.name)
        # The second time through: only now is it known that every member is harmless, and which ones are sentences.
        raw.seek(0)
        for member, content in _members(_decompress(raw, raw, source.name), source.name):
            if member.name in wanted:
                name = f"{source.name}: {member.name}"
                text = _decompress(io.BufferedReader(_Guarded(content, raw, name)), raw, name)
                yield name, _refuse_html(text, name)


def _open(source):
    try:
        if _is_folder(source.path):
            raise InputError(f"{source.name}: is a folder where a file is expected.")
        return open(source.path, "rb")
    except (OSError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{source.name}: cannot be read ({getattr(error, 'strerror', error)}).") from None


def _refuse_html(stream, name):
    # A login page that came with status 200 is the usual case.
    if looks_like_html(stream.peek(1024)[:1024]) and not asks_for_html(name):
        raise InputError(
            f"{name}: is a web page (HTML) and not text. Fetch the file anew, or take the text out of the page. If "
            "HTML is what you want to learn from, give the file a name that ends in .html."
        )
    return stream


def _decompress(stream, raw, name):
    # By the first bytes, since servers and people give files other names.
    head = stream.peek(10)[:10]
    if head.startswith(b"\x1f\x8b"):
        inflated = gzip.GzipFile(fileobj=stream)
    elif head.startswith(b"BZh") and head[4:] == b"1AY&SY":
        inflated = bz2.BZ2File(stream)
    elif head.startswith(b"\xfd7zXZ\x00"):
        inflated = lzma.LZMAFile(stream)
    elif head.startswith(b"\x28\xb5\x2f\xfd"):
        inflated = pa.CompressedInputStream(pa.PythonFile(stream, mode="r"), "zstd")
    # These are recognised and refused: read as text they would be pages of noise.
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
        # Against the bytes read so far, not against the file's size: a bomb at the end of a large file is one, too.
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
    # The oldest tars have no magic; then the name has to say so.
    return stream.peek(262)[257:262] == b"ustar" or inner_suffix(source.path.name) == ".tar"


def _members(stream, name):
    """Yield (member, stream) in the order of the archive, refusing it at the first member that is not plain."""
    try:
        # As a stream, forwards only: a compressed file cannot go back cheaply.
        with tarfile.open(fileobj=stream, mode="r|", tarinfo=_Member) as archive:
            for member in archive:
                path = PurePosixPath(member.name)
                # Nothing is extracted here; but whoever made this archive meant harm, or the tool did not know what it
                # did.
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
    wanted = [name for name in names if is_sentences(name)] or [name for name in names if is_text(name)]
    if not wanted:
        raise InputError(f"{name}: no *-sentences.txt and no .txt among its {len(names)} files.")
    return set(wanted)
