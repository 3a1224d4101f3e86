"""Where the numbers of a program lie, and loops over them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from weft.compiled.operations import TYPES


@dataclass(eq=False)
class Place:
    """A piece of memory: an input of the program, or a part of what it has for itself."""

    base: str = ""  # the C name of an input; "" for what the program has for itself
    size: int = 0  # bytes
    first: int = 0  # the place in the order of work where it is written for the first time
    last: int = 0  # and where it is used for the last time
    start: int = 0  # bytes from the start of the program's own memory


class Value(NamedTuple):
    """A tensor of the program."""

    place: Place
    like: Tensor  # its shape, strides, start and type, without memory
    shift: str = ""  # numbers further on, as a C expression

    @property
    def type(self) -> str:
        """The C type of its numbers."""
        return TYPES[self.like.dtype]

    def same(self, other: Value) -> bool:
        """Whether both are the same numbers in the same order."""
        a, b = self.like, other.like
        where = (a.shape, a.stride(), a.storage_offset(), a.dtype) == (b.shape, b.stride(), b.storage_offset(), b.dtype)
        return self.place is other.place and self.shift == other.shift and where

    def viewed(self, like: Tensor) -> Value:
        """The same memory under another shape."""
        return self._replace(like=like)

    def spread(self, to: Value) -> Value:
        """Repeated to the shape of another value."""
        return self.viewed(self.like.expand(to.like.shape))

    def rows(self, many: int, start: str) -> Value:
        """So many of the first axis, from a C expression on; all if it has none to tell apart."""
        stride = self.like.stride(0)
        return self.viewed(self.like.narrow(0, 0, many))._replace(shift=f"{start} * {stride}" if stride else "")


def pointer(value: Value) -> str:
    """A C expression of where a value begins."""
    base = value.place.base or f"(own + {value.place.start})"
    start = "".join(f" + {x}" for x in (value.like.storage_offset(), value.shift) if x)
    return f"({value.type} *){base}{start}"


IN_ORDER = ""
"""Instead of a pragma: turns of the loop may meet."""


def block(lines: Sequence[str]) -> list[str]:
    """Lines whose names are their own."""
    return ["{", *lines, "}"]


def loops(
    shape: Sequence[int],
    layouts: Sequence[Sequence[int]],
    body: Callable[..., Sequence[str]],
    pragma: str = "#pragma omp simd",
) -> list[str]:
    """Loops over a shape in the order of the first layout, with as few axes as will do.

    Args:
        shape: how often each axis is gone through.
        layouts: for each operand, how many numbers further on the next one of each axis is.
        body: C expressions of how far on each operand is -> lines.
        pragma: before the innermost loop.
    """
    axes = [(n, [layout[i] for layout in layouts]) for i, n in enumerate(shape) if n != 1]
    axes.sort(key=lambda axis: -axis[1][0] if layouts else 0)
    merged: list[tuple[int, list[int]]] = []
    for n, strides in axes:
        if merged and all(outer == inner * n for outer, inner in zip(merged[-1][1], strides, strict=True)):
            merged[-1] = (merged[-1][0] * n, strides)
        else:
            merged.append((n, strides))
    lines = []
    for i, (n, _) in enumerate(merged):
        lines += [pragma] if i == len(merged) - 1 else []
        lines.append(f"for (long i{i} = 0; i{i} < {n}; i{i}++) {{")
    places = [
        " + ".join(f"i{i} * {s[k]}" for i, (_, s) in enumerate(merged) if s[k]) or "0" for k in range(len(layouts))
    ]
    return [*lines, *body(*places), *["}"] * len(merged)]
