"""Packed rows that lie elsewhere, on the Hub or in rented storage: copied once to this machine, never streamed.

The name that the user gives comes in; the folder on this machine that `open_packed_rows` takes goes out.
"""

import json
import os
import re
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

import fsspec
from datasets.utils import tqdm
from huggingface_hub import snapshot_download

from electra_hf.errors import InputError, disk_fault
from electra_hf.files import digest, flush, write_text
from electra_hf.text.downloads import is_address
from electra_hf.text.fingerprint import fingerprint_of
from electra_hf.text.names import printable
from electra_hf.text.packed_rows import MANIFEST, check_manifest
from electra_hf.text.prepared import cache_folder, locked, refusals_of_the_disk

HUB = "hf://datasets/"


def find_packed_rows(name: str, data_cache_dir: str | None = None) -> Path:
    """The folder of this path, or a copy of what lies on the Hub (user/name, user/name@revision) or at an address.

    What is copied is compared with its manifest, as a folder of this machine is. Raises `InputError`.
    """
    if Path(name).exists():
        return Path(name)
    # A dataset as a whole: the Hub's own client goes on where it stopped, and keeps what it has in its own cache.
    if re.fullmatch(r"[\w.-]+/[\w.-]+(@[\w./-]+)?", name.removeprefix(HUB)):
        return _fetch_dataset(name.removeprefix(HUB))
    if is_address(name):
        return copy_rows(name.rstrip("/"), cache_folder(data_cache_dir) / "packed_rows")
    # A name that the Hub cannot have is taken for a folder, and is then reported as one that is missing.
    return Path(name)


def _fetch_dataset(name):
    repo_id, _, revision = name.partition("@")
    try:
        return Path(snapshot_download(repo_id, repo_type="dataset", revision=revision or None))
    except Exception as error:  # the HTTP client and the Hub's answers raise a dozen types
        if disk_fault(error):
            raise
        raise InputError(
            f"packed_rows: there is no folder {name} here, and no such dataset can be fetched from the Hub "
            f"({_reason(error)})."
        ) from None


def copy_rows(address: str, cache: Path) -> Path:
    """The copy in `cache` of the rows at an address that fsspec knows, made now as far as it is missing.

    A copy is found by the content of its manifest: rows that are made anew at the same address are another one. A file
    gets its name once it has been compared with its checksum, so a copy that was stopped goes on with the next file.
    Raises `InputError`.
    """
    with _asking(address, MANIFEST):
        files, root = fsspec.core.url_to_fs(address)
        text = files.cat_file(f"{root}/{MANIFEST}").decode(errors="replace")
    checksums = _checksums(text, f"{address}/{MANIFEST}")
    folder = cache / fingerprint_of(text)
    with refusals_of_the_disk(folder):
        if not _missing(folder, checksums):
            return folder
        folder.mkdir(parents=True, exist_ok=True)
        # Another process may be at it: then this one waits, and finds it done.
        with locked(folder):
            for name in tqdm(_missing(folder, checksums), desc="copying rows", unit="file"):
                if name == MANIFEST:  # as it was read above: it may change meanwhile
                    write_text(folder / MANIFEST, text)
                else:
                    _copy(files, address, root, folder, name, checksums[name])
    return folder


def _checksums(text, where):
    """The SHA-256 of each file that the manifest names, and last the manifest itself, which has none."""
    try:
        manifest = json.loads(text)
    except ValueError:
        manifest = None
    check_manifest(manifest, where)
    checksums = {name: described["sha256"] for name, described in manifest["shards"].items()} | manifest["files"]
    for name in checksums:
        # Whoever wrote it decides where this machine writes.
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            raise InputError(f"packed_rows: {where} names a file outside of its folder, {printable(name)!r}.")
    return checksums | {MANIFEST: None}


def _missing(folder, names):
    return [name for name in names if not (folder / name).is_file()]


def _copy(files, address, root, folder, name, sha256):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"{path.name}.incomplete")
    try:
        with _asking(address, name):
            files.get_file(f"{root}/{name}", str(unfinished))
        if digest(unfinished) != sha256:
            raise InputError(
                f"packed_rows: {printable(address)}/{name} is cut or changed: it is not as {MANIFEST} says. Copy the "
                "rows there anew, or make them again with recipes/prepare_shards.py."
            )
        flush(unfinished)
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)  # of a copy that failed


@contextmanager
def _asking(address, name):
    """Turn what a file system answers into an `InputError`: each has types of its own."""
    try:
        yield
    except (ImportError, ValueError) as error:  # its package is not installed, or nobody knows such addresses
        raise InputError(
            f"packed_rows: {printable(address)} cannot be opened ({_reason(error)}). Install what that names with "
            "pip, or correct the address."
        ) from None
    except FileNotFoundError:
        raise InputError(
            f"packed_rows: {printable(address)} holds no packed rows ({name} is not there). Correct the address, or "
            "make them with recipes/prepare_shards.py."
        ) from None
    except Exception as error:
        if name != MANIFEST and disk_fault(error):  # the manifest is not written to the disk here
            raise
        raise InputError(
            f"packed_rows: {printable(address)}/{name} cannot be read ({_reason(error)}). Check the address, the "
            "network, and whether this account may read it."
        ) from None


def _reason(error):
    return printable(" ".join(str(error).split())) or type(error).__name__
