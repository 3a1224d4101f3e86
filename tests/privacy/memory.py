"""What a process has in its memory, as Linux shows it."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator

import numpy as np

PAGE = 4096  # bytes


def regions(pid: int) -> Iterator[bytes]:
    """All that a process can have written to, region by region without pages of zeros, which are slow to search.

    PermissionError where that is not shown.
    """
    with open(f"/proc/{pid}/maps") as maps, open(f"/proc/{pid}/mem", "rb", 0) as memory:
        for line in maps:
            span, rights, *rest = line.split()
            if "w" not in rights or (rest[3:] and rest[3].startswith("[v")):
                continue
            low, high = (int(x, 16) for x in span.split("-"))
            try:
                pages = np.frombuffer(os.pread(memory.fileno(), high - low, low), np.uint64).reshape(-1, PAGE // 8)
            except OSError:
                continue
            yield pages[pages.any(1)].tobytes()


def found(needles: Iterable[bytes], places: Iterable[bytes]) -> set[bytes]:
    """Those of the needles that are in one of the places."""
    there, missing = set[bytes](), set(needles)
    for place in places:
        there |= {needle for needle in missing if needle in place}
        missing -= there
    return there
