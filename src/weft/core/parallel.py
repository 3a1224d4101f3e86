"""Programs side by side on the cores of one machine."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import torch

T = TypeVar("T")
U = TypeVar("U")


def side_by_side(function: Callable[[T], U], items: Sequence[T], workers: int) -> list[U]:
    """``[function(x) for x in items]`` in so many threads, in each of which an operation takes one core.

    Threads will do, since torch's operations let go of Python's lock, and they share the examples. A single item has
    all the cores to itself.
    """
    if workers == 1 or not items:
        return [function(item) for item in items]
    if len(items) == 1:
        with intra_op(workers):
            return [function(items[0])]
    with intra_op(1):
        return list(_pool(workers).map(function, items))


@functools.cache
def _pool(workers: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(workers, "weft", torch.set_num_threads, (1,))


@contextmanager
def intra_op(threads: int) -> Iterator[None]:
    """Inside, an operation of this thread takes so many cores.

    Where workers take turns with operations of several threads, the workers lose: after such an operation OpenMP's
    threads stay awake for some milliseconds, and hold a core. So a run with workers has all else done by one core.
    """
    before = torch.get_num_threads()
    if threads == before:
        yield
        return
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
