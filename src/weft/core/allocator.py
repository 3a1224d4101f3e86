"""The C library's allocator, told to keep what is freed while a run goes on."""

from __future__ import annotations

import ctypes
import functools

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4
_HEAP = 64 * 2**20  # the step in which a thread's heap grows; with as much to spare an empty one stays


@functools.cache
def keep_freed_memory() -> bool:
    """Reuse blocks in place of giving them back to the system; whether the allocator took the wish.

    A step frees and asks again for tensors of some MiB, and a round for stacks of uploads; glibc's default returns each
    to the system, which then hands out cleared pages anew: several times the cost of the arithmetic
    (docs/performance.md). Only glibc has the call.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return False
    return all(mallopt(*wish) for wish in ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, 2**31 - 1), (_TOP_PAD, _HEAP)))


def give_back_freed_memory() -> None:
    """Let the system have what was kept, at the end of a run: many runs of one process need no more than one."""
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (AttributeError, OSError):
        return
