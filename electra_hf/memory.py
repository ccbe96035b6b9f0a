"""Memory of a process that trains on a CPU."""

import ctypes

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # malloc.h


def keep_freed_memory():
    """Let glibc reuse the memory of large tensors; it would return it to the system, and fetch fresh pages for each.

    Training on a CPU takes a fifth less time (recipes/SPEED.md). Other C libraries are left as they are.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # macOS, musl, Windows
        return
    mallopt(_M_MMAP_MAX, 0)
    mallopt(_M_TRIM_THRESHOLD, -1)
