"""The one exception that means: the user's input or configuration is wrong. And what a disk refuses."""

import errno
import re

_DISK_FAULTS = {
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EIO)
}


class InputError(ValueError):
    """Names the file, line or key, what was expected there, and the way out. A recipe prints it and exits with 2.

    It is a class of its own so that a recipe can tell it from a `ValueError` that is a defect of ours and deserves
    its traceback.
    """


class AgreedError(InputError):
    """An `InputError` that every process of a run raises with the same words: the first one alone tells it."""


def disk_fault(error: BaseException | None) -> str | None:
    """What the disk refused (full, read-only, not allowed), in words; None where the error has another reason."""
    # Down the chain of causes: libraries wrap the error of the system in their own.
    while error is not None and not isinstance(error, InputError):
        if isinstance(error, OSError) and error.errno in _DISK_FAULTS:
            return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
        # safetensors, tokenizers and torch keep no errno, and torch not even the words for it.
        if re.search(r"\(os error \d+\)|inline_container|iostream error", str(error)):
            return " ".join(str(error).split())
        error = error.__cause__
    return None
