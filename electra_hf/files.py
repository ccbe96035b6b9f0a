"""Files that are whole or not there: written beside their place, flushed to the disk, then renamed.

A process that is killed, and a disk that is full, leave the old file or the new one, never half of one.
"""

import hashlib
import json
import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from electra_hf.errors import InputError

CHUNK = 1 << 20  # bytes
UNFINISHED = ".unfinished"  # ends the name of a folder that `folder_once` has begun


def write_text(path: str | Path, text: str) -> None:
    """Replace the file at `path` by `text` in UTF-8; a letter that UTF-8 lacks is written as its number."""
    path = Path(path)
    temporary = path.with_name(f"{path.name}.tmp")
    try:
        # A file name that is no UTF-8 holds such letters. In JSON their numbers are the letters themselves.
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")
        flush(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)  # of a write that the disk refused
    flush(path.parent)


def write_json(path: str | Path, content: dict | list) -> None:
    """Replace the file at `path` by `content` as JSON."""
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def read_json(path: str | Path) -> dict:
    """The JSON object in a file. Raises `InputError` where the file is missing, empty, cut or something else."""
    path = Path(path)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is empty, cut or no JSON"
        raise InputError(f"{path} cannot be read: {reason}.") from None
    if not isinstance(content, dict):
        raise InputError(f"{path} cannot be read: expected a JSON object, found a {type(content).__name__}.")
    return content


@contextmanager
def new_folder(path: str | Path) -> Iterator[Path]:
    """Make the folder at `path` as a whole: what is written to the folder that this yields appears there at the end.

    An older folder at `path` is replaced. Where the block raises, nothing stays.
    """
    path = Path(path)
    unfinished = path.with_name(f"{path.name}.incomplete")
    shutil.rmtree(unfinished, ignore_errors=True)  # of a process that was killed
    unfinished.mkdir(parents=True)
    try:
        yield unfinished
        flush_folder(unfinished)
        old = path.with_name(f"{path.name}.old")
        shutil.rmtree(old, ignore_errors=True)
        if path.exists():
            os.replace(path, old)  # a folder that is not empty cannot be replaced in one step
        os.replace(unfinished, path)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    flush(path.parent)


@contextmanager
def folder_once(path: str | Path) -> Iterator[Path]:
    """Make the folder at `path` as a whole, as `new_folder` does, where another process may be making it too.

    A task can be given out twice, or outlive the job that began it. Each writes a folder of its own, and what the
    first one has put at `path` stays: use it for content that is the same whoever makes it.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"{path.name}.{socket.gethostname()}.{os.getpid()}{UNFINISHED}")
    shutil.rmtree(unfinished, ignore_errors=True)  # of a process that was killed and had our number
    unfinished.mkdir()
    try:
        yield unfinished
        flush_folder(unfinished)
        try:
            os.rename(unfinished, path)
        except OSError:  # the system's word for "it is not empty" differs
            if not path.is_dir():
                raise
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    flush(path.parent)


@contextmanager
def replaced_files(folder: str | Path) -> Iterator[Path]:
    """Put files into a folder, each as a whole: what is written to the folder that this yields moves there at the end.

    What else lies in the folder stays, such as a card of the user. Where the block raises, no file has changed.
    """
    folder = Path(folder)
    unfinished = folder / ".incomplete"  # inside: the folder may be a mount, and beside it nothing may be written
    shutil.rmtree(unfinished, ignore_errors=True)  # of a process that was killed
    unfinished.mkdir(parents=True)
    try:
        yield unfinished
        flush_folder(unfinished)
        for path in sorted(unfinished.iterdir()):
            os.replace(path, folder / path.name)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    flush(folder)


def set_aside(path: str | Path) -> Path:
    """Rename a file or folder of an earlier run to NAME.aside, in place of an older one, and return its new path."""
    path = Path(path)
    aside = path.with_name(f"{path.name}.aside")
    if aside.is_dir():
        shutil.rmtree(aside)
    else:
        aside.unlink(missing_ok=True)
    os.replace(path, aside)
    return aside


def flush_folder(folder: Path) -> None:
    """Flush every file of a folder, and the folder itself, to the disk."""
    for path in sorted(folder.rglob("*")):
        flush(path)
    flush(folder)


def flush(path: Path) -> None:
    """Flush a file or a folder to the disk: a rename that follows never shows a file without its content."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def digest(path: str | Path) -> str:
    """The SHA-256 of a file's content, in hexadecimal."""
    sha256 = hashlib.sha256()  # hashlib.file_digest came with Python 3.11
    with open(path, "rb") as file:
        while chunk := file.read(CHUNK):
            sha256.update(chunk)
    return sha256.hexdigest()


def digest_folder(folder: str | Path) -> dict[str, str]:
    """The SHA-256 of every file below a folder, by its path there with forward slashes."""
    folder = Path(folder)
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): digest(path) for path in files}
