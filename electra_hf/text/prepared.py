"""Folders of prepared data: made as a whole, checked when they are read, and made anew when they are damaged."""

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

from datasets import Dataset, config
from datasets.table import MemoryMappedTable
from filelock import FileLock

from electra_hf.errors import InputError, disk_fault
from electra_hf.files import digest, new_folder, read_json, write_json

logger = logging.getLogger(__name__)

MANIFEST = "manifest.json"


def cache_folder(data_cache_dir: str | Path | None = None) -> Path:
    """Where downloads and prepared data go: the folder that the user names, or one beside the library's own caches."""
    if data_cache_dir is None:
        return Path(config.HF_DATASETS_CACHE) / "electra_hf"
    return Path(os.path.expanduser(data_cache_dir))


def prepared_folder(cache: Path, name: str, prepare: Callable[[Path], None]) -> Path:
    """The folder `name` in the cache, which `prepare(folder)` fills where it is missing or damaged.

    Every file is read and compared with its SHA-256 in the manifest, at every start: about half a second per gigabyte.
    A folder that is whole is used without writing anything, so a finished cache may be read-only and shared by many.
    Raises `InputError` where the disk refuses; then nothing half-written stays.
    """
    folder = cache / name
    # First without the lock: a lock is a file, and a finished cache may be read-only.
    if find_damage(folder) is None:
        return folder
    with refusals_of_the_disk(folder):
        cache.mkdir(parents=True, exist_ok=True)
        # Two runs may start at once with the same corpus: one prepares it, and the other waits.
        with locked(folder):
            _prepare_unless_whole(folder, prepare)
    return folder


def _prepare_unless_whole(folder, prepare):
    damage = find_damage(folder)  # once more: another process may have prepared it while this one waited
    if damage is None:
        return
    if folder.exists():
        logger.warning("%s is damaged (%s) and is prepared anew.", folder, damage)
    with new_folder(folder) as unfinished:
        prepare(unfinished)
        manifest = {
            # Versions help to find the cause of a difference. Nothing compares them.
            "versions": {name: version(name) for name in ("electra_hf", "datasets", "pyarrow")},
            "files": {path.name: _describe(path) for path in sorted(unfinished.iterdir())},
        }
        write_json(unfinished / MANIFEST, manifest)


def find_damage(folder: Path) -> str | None:
    """What is wrong with a prepared folder: it is missing, or a file is not as it was written. None if it is whole."""
    if not folder.is_dir():
        return "it is missing"
    try:
        files = read_json(folder / MANIFEST).get("files")
    except InputError as error:
        return str(error)
    if not isinstance(files, dict) or not files:
        return f"{MANIFEST} names no files"
    # What others put beside our files (a cache of `Dataset.map`) is not ours to judge.
    wrong = [name for name, written in files.items() if _describe(folder / name) != written]
    return f"{', '.join(wrong)}: not as {MANIFEST} says" if wrong else None


def _describe(path):
    try:
        return {"bytes": path.stat().st_size, "sha256": digest(path)}
    except (OSError, ValueError):  # a damaged manifest can name anything
        return None


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Let one process at a time work on `path`, which must look anew at what is there once it has its turn."""
    lock = path.with_name(f"{path.name}.lock")
    with FileLock(lock):
        yield
        # Whoever still waits for this file finds the work done; ten thousand downloads leave no ten thousand locks.
        lock.unlink(missing_ok=True)


@contextmanager
def refusals_of_the_disk(folder: Path) -> Iterator[None]:
    """Turn what the disk refuses (it is full, read-only, not allowed) into an `InputError` that names the folder."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # pyarrow, tokenizers and filelock have classes of their own for it
        if (fault := disk_fault(error)) is None:
            raise
        raise InputError(
            f"{folder} cannot be written ({fault}). Make room there, or set data_cache_dir to a folder that you may "
            "write to, and start again."
        ) from None


def read_arrow(path: Path, fingerprint: str) -> Dataset:
    """The memory-mapped table in an Arrow file as a dataset that is known by the fingerprint of its content.

    Left alone, datasets takes the path and the time stamp of the file into the fingerprint.
    """
    return Dataset(MemoryMappedTable.from_file(str(path)), fingerprint=fingerprint)
