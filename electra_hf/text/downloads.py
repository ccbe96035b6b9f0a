"""Text from http(s) addresses: fetched once, continued after a break, and never joined from two versions of a file."""

import logging
import os
import re
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

import xxhash
from datasets.utils import tqdm
from huggingface_hub import get_session
from huggingface_hub.errors import HTTPError

from electra_hf.errors import InputError, disk_fault
from electra_hf.files import digest, read_json, write_json
from electra_hf.text.names import inner_name, printable
from electra_hf.text.prepared import locked

logger = logging.getLogger(__name__)

TIMEOUT = 30  # seconds without an answer
MOST_FAILURES = 5  # in a row without one byte more
# Or a server may send a .gz as a "gzip-encoded" text, whose length and offsets mean something else.
PLAIN_BYTES = {"Accept-Encoding": "identity"}
WEB_PAGES = (".html", ".htm", ".xhtml")  # endings of names that ask for a page
HTML = re.compile(
    rb"(\xef\xbb\xbf)?\s*(<\?xml[^>]*>\s*)?(<!--.*?-->\s*)*<(!doctype\s+html|html|head|body)\b", re.I | re.S
)


@dataclass(frozen=True)
class _Version:
    """What the server says of the file before it is fetched; 0 and None: it does not say."""

    size: int
    etag: str | None
    modified: str | None


def is_address(name: str) -> bool:
    """Whether a name is an address (of any scheme) and not a path."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", name) is not None


def public_name(url: str) -> str:
    """The address as it may be printed and saved: without a password and a signed query. Raises `InputError`."""
    try:
        url.encode()
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        # Not a word of the address: nobody can tell where in it a password stands.
        raise InputError("An address is not valid: expected one like https://host/folder/text.txt.gz.") from None
    if parts.scheme.lower() not in ("http", "https") or not parts.hostname:
        shown = printable(f"{parts.scheme}://{parts.hostname or ''}")
        raise InputError(f"{shown}: only http:// and https:// addresses are fetched.")
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return printable(f"{parts.scheme}://{host}{f':{port}' if port is not None else ''}{parts.path}")


def looks_like_html(start: bytes) -> bool:
    """Whether a file that starts with these bytes is a web page, such as the form of a log-in."""
    return HTML.match(start) is not None


def asks_for_html(name: str) -> bool:
    """Whether a name says that a web page is wanted."""
    return inner_name(name).endswith(WEB_PAGES)


def download(url: str, folder: Path) -> Path:
    """Fetch `url` into `folder` as `download_all` does."""
    return download_all([url], folder)[url]


def download_all(urls: list[str], folder: Path) -> dict[str, Path]:
    """Fetch each address once into `folder`, with one progress bar for all; return where each lies.

    A download that was cut goes on where it stopped; one that changed on the disk is fetched again. Raises
    `InputError`.
    """
    paths = {url: folder / _file_name(url, public_name(url)) for url in urls}
    with ExitStack() as stack:
        progress = None
        for url, path in paths.items():
            if not _is_whole(path):
                progress = progress or stack.enter_context(tqdm(desc="fetching", total=0, unit="B", unit_scale=True))
                _download(url, path, progress)
    return paths


def _file_name(url, name):
    # The end of a path may be anything: too long for a disk, or with characters that no disk takes.
    end = re.sub(r"[^A-Za-z0-9._-]", "_", PurePosixPath(urlsplit(url).path).name)[-100:] or "download"
    # With a hash of the whole address: many addresses end in the same name.
    return f"{xxhash.xxh3_64_hexdigest(url.encode())}-{end}"


def _record(path):
    return path.with_name(f"{path.name}.json")


def _is_whole(path):
    """Whether the download is there, as it was when it was fetched."""
    if not path.is_file():
        return False
    if not _record(path).exists():  # fetched by an older version, which kept no record
        return True
    try:
        is_whole = read_json(_record(path)).get("sha256") == digest(path)
    except InputError:
        is_whole = False
    if not is_whole:
        logger.warning("%s changed since it was fetched, and is fetched again.", path)
    return is_whole


def _download(url, path, progress):
    name = public_name(url)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with locked(path):
            # Asked once more: another process may have fetched it while this one waited.
            if not _is_whole(path):
                path.unlink(missing_ok=True)
                _fetch(url, name, path, progress)
    except InputError:
        raise
    except Exception as error:  # HTTPError, OSError, and what a client raises for an address that it cannot parse
        if fault := disk_fault(error):
            raise InputError(f"{path.parent} cannot be written ({fault}). Make room, or set data_cache_dir.") from None
        reason = (str(error).split("\n")[0] or type(error).__name__).replace(url, name)
        raise InputError(
            f"{name}: cannot be fetched ({printable(reason)}). Start again to go on where it stopped, "
            "or fetch it by hand and give its path."
        ) from None


def _fetch(url, name, path, progress):
    version = _ask_version(url)
    # The version is in the name of the part: the two halves of a file that changed in between are never joined.
    identity = xxhash.xxh3_64_hexdigest(f"{version.etag} {version.modified} {version.size}".encode())
    part = path.with_name(f"{path.name}.{identity}.incomplete")
    progress.total = (progress.total or 0) + version.size
    failures, most = 0, 0
    with open(part, "ab" if version.size else "wb") as file:
        progress.update(file.tell())
        while not version.size or file.tell() < version.size:
            most = max(most, file.tell())
            try:
                _fetch_rest(url, name, file, version, progress)
                break
            except HTTPError:
                failures = 0 if file.tell() > most else failures + 1  # begun anew and cut again is no step
                if failures == MOST_FAILURES:
                    raise
                time.sleep(1)
    if version.size and part.stat().st_size != version.size:
        part.unlink()
        raise HTTPError(f"{version.size} bytes were promised, others came")
    _refuse_page(name, part)
    # The record first: a file without one counts as fetched by an older version, and is not compared.
    write_json(_record(path), {"sha256": digest(part)})
    os.replace(part, path)


def _ask_version(url):
    answer = get_session().head(url, headers=PLAIN_BYTES, timeout=TIMEOUT)
    size = answer.headers.get("Content-Length", "") if answer.is_success else ""
    return _Version(
        int(size) if size.isdecimal() else 0, answer.headers.get("ETag"), answer.headers.get("Last-Modified")
    )


def _fetch_rest(url, name, file, version, progress):
    """Append what `file` still lacks, or write it anew where the server sends something else."""
    start = file.tell()
    headers = PLAIN_BYTES | ({"Range": f"bytes={start}-"} if start else {})
    with get_session().stream("GET", url, headers=headers, timeout=TIMEOUT) as response:
        if not response.is_success:
            raise InputError(f"{name}: the server answered {response.status_code}. Check the address in a browser.")
        if response.headers.get("Content-Type", "").lower().startswith("text/html") and not asks_for_html(name):
            raise _page(name)
        goes_on = response.status_code == 206 and _goes_on(response.headers, start, version)  # 206: Partial Content
        if not goes_on:
            progress.update(-file.tell())
            file.seek(0)
            file.truncate()
        if response.status_code == 206 and not goes_on:
            raise HTTPError("the server sent another part, or a part of another file, than was asked for")
        # Raw: the client would unpack what a server calls gzip-encoded, and the sizes would not fit.
        for chunk in response.iter_raw():
            progress.update(file.write(chunk))


def _goes_on(headers, start, version):
    """Whether a partial answer goes on at `start`, in the same version of the file."""
    sent = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+|\*)", headers.get("Content-Range", "").strip())
    if not sent or int(sent[1]) != start:
        return False
    is_same_size = sent[3] in ("*", str(version.size)) or not version.size
    return is_same_size and headers.get("ETag", version.etag) == version.etag


def _refuse_page(name, part):
    with open(part, "rb") as file:
        is_page = looks_like_html(file.read(1024)) and not asks_for_html(name)
    if is_page:
        part.unlink()
        raise _page(name)


def _page(name):
    return InputError(
        f"{name}: the server sent a web page (HTML), not the file. Open the address in a browser: it may want a "
        "log-in or a click. Then fetch the file by hand and give its path."
    )
