"""One run per output folder: a second one is told who has it."""

import atexit
import fcntl
import json
import logging
import os
import socket
import time
from pathlib import Path

from electra_hf.errors import InputError

logger = logging.getLogger(__name__)

LOCK = ".lock"
_held: dict[Path, int] = {}  # folder: the open file of its lock, which the system releases when the process ends


def lock_output_dir(output_dir: str | Path) -> None:
    """Keep every other process out of `output_dir` until this one ends. Raises `InputError` that names the other one.

    Call it on the main process alone, before the first write there.
    """
    folder = Path(output_dir).resolve()
    if folder in _held:
        return
    folder.mkdir(parents=True, exist_ok=True)
    # Not truncated when it is opened: the name in it may be that of the run that holds the lock.
    file = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = _read_holder(file)
        os.close(file)
        raise InputError(
            f"output_dir: {output_dir} is in use by {holder}. Wait for it to end, stop it, or choose another "
            "output_dir."
        ) from None
    except OSError as error:  # some network disks know no locks
        logger.warning("%s cannot be locked (%s): start no second run there.", output_dir, error.strerror)
        os.close(file)
        return
    if not _is_still_there(folder / LOCK, file):  # the process before removed it between our open and our lock
        os.close(file)
        return lock_output_dir(output_dir)
    holder = {"process": os.getpid(), "host": socket.gethostname(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}
    os.ftruncate(file, 0)
    os.write(file, json.dumps(holder).encode())
    _held[folder] = file


def _read_holder(file):
    try:
        holder = json.loads(os.pread(file, 4096, 0))
        return f"process {holder['process']} on {holder['host']} since {holder['since']}"
    except (ValueError, KeyError, TypeError):  # it has not written its name yet
        return "another process"


def _is_still_there(path, file):
    try:
        return os.path.samestat(path.stat(), os.fstat(file))
    except FileNotFoundError:
        return False


@atexit.register
def release_locks() -> None:
    """Give all folders back; one that holds nothing but the lock, of a run that was refused, goes with it."""
    while _held:
        folder, file = _held.popitem()
        try:
            (folder / LOCK).unlink(missing_ok=True)
            folder.rmdir()
        except OSError:
            pass  # it holds results, or is gone
        os.close(file)
