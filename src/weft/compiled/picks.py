"""Operations that pick, put, join and copy, in C."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from weft.compiled.loops import IN_ORDER, Value, block, loops, pointer
from weft.compiled.operations import Uncompiled, number

_OUT_OF_RANGE = "if ({at} < 0 || {at} >= {size}) return 1;"


def _index_select(out: Value, self: Value, dim: int, index: Value) -> list[str]:
    return _picked(out, self, index, dim % self.like.ndim)


def _index(out: Value, self: Value, indices: Sequence[Value | None]) -> list[str]:
    given = [(d, x) for d, x in enumerate(indices) if x is not None]
    if len(given) != 1 or given[0][1].like.ndim != 1 or given[0][1].like.dtype not in (torch.int64, torch.int32):
        raise Uncompiled("an index of several axes")
    return _picked(out, self, given[0][1], given[0][0], f"if (at < 0) at += {self.like.shape[given[0][0]]};")


def _picked(out: Value, self: Value, index: Value, dim: int, wrap: str = "") -> list[str]:
    """Parts of an axis by their numbers."""
    shape, rest = out.like.shape, [d for d in range(out.like.ndim) if d != dim]
    layouts = [[out.like.stride(d) for d in rest], [self.like.stride(d) for d in rest]]
    copy = loops([shape[d] for d in rest], layouts, lambda t, f: [f"to[{t}] = from[{f}];"])
    return [
        f"const {index.type} *numbers = {pointer(index)};",
        f"for (long n = 0; n < {shape[dim]}; n++) {{",
        f"int64_t at = numbers[n * {index.like.stride(0) if index.like.ndim else 0}];",
        wrap,
        _OUT_OF_RANGE.format(at="at", size=self.like.shape[dim]),
        f"{out.type} *restrict to = {pointer(out)} + n * {out.like.stride(dim)};",
        f"const {self.type} *from = {pointer(self)} + at * {self.like.stride(dim)};",
        *copy,
        "}",
    ]


def _gather(out: Value, self: Value, dim: int, index: Value, sparse_grad: bool = False) -> list[str]:
    return _one_by_one(out, self, index, dim, self, "to[{to}] = from[{at}];")


def _scatter_add(out: Value, self: Value, dim: int, index: Value, src: Value) -> list[str]:
    return [*block(copied(out, self)), *_one_by_one(out, src, index, dim, out, "to[{at}] += from[{source}];")]


def _one_by_one(out: Value, source: Value, index: Value, dim: int, picked: Value, form: str) -> list[str]:
    """For each number of an index a statement, in which `at` is its place along an axis of what is `picked`."""
    dim %= index.like.ndim
    along = [0 if d == dim else s for d, s in enumerate(picked.like.stride())]

    def body(number: str, to: str, source: str, at: str) -> list[str]:
        place = f"numbers[{number}]"
        at = f"{at} + {place} * {picked.like.stride(dim)}"
        check = _OUT_OF_RANGE.format(at=place, size=picked.like.shape[dim])
        return [check, form.format(to=to, source=source, at=at)]

    layouts = [index.like.stride(), out.like.stride(), source.like.stride(), along]
    return [
        f"{out.type} *restrict to = {pointer(out)};",
        f"const {source.type} *from = {pointer(source)};",
        f"const {index.type} *numbers = {pointer(index)};",
        *loops(index.like.shape, layouts, body, IN_ORDER),
    ]


def _select_back(out: Value, grad_output: Value, input_sizes: Any, dim: int, index: int) -> list[str]:
    return _put(out, grad_output, out.like.select(dim, index))


def _slice_back(
    out: Value, grad_output: Value, input_sizes: Any, dim: int, start: int, end: int, step: int
) -> list[str]:
    index = slice(start, end, step)
    return _put(out, grad_output, out.like[(slice(None),) * (dim % out.like.ndim) + (index,)])


def _put(out: Value, part: Value, where: Tensor, around: str = "0") -> list[str]:
    """A part where it belongs, and one number around it."""
    same = loops(out.like.shape, [out.like.stride()], lambda t: [f"to[{t}] = {around};"])
    return [*block([f"{out.type} *restrict to = {pointer(out)};", *same]), *block(copied(out.viewed(where), part))]


def _cat(out: Value, tensors: Sequence[Value], dim: int = 0) -> list[str]:
    dim, at, lines = dim % out.like.ndim, 0, list[str]()
    for part in tensors:
        many = part.like.shape[dim]
        lines += block(copied(out.viewed(out.like.narrow(dim, at, many)), part))
        at += many
    return lines


def _stack(out: Value, tensors: Sequence[Value], dim: int = 0) -> list[str]:
    dim %= out.like.ndim
    parts = (copied(out.viewed(out.like.select(dim, i)), part) for i, part in enumerate(tensors))
    return [line for part in parts for line in block(part)]


def _padded(out: Value, self: Value, pad: Sequence[int], value: float = 0) -> list[str]:
    where = out.like
    for i, (before, after) in enumerate(zip(pad[::2], pad[1::2], strict=True)):
        d = out.like.ndim - 1 - i
        if before < 0 or after < 0:
            raise Uncompiled("padding that cuts off")
        where = where.narrow(d, before, self.like.shape[d])
    return _put(out, self, where, number(value, out.like.dtype))


def copied(out: Value, source: Value) -> list[str]:
    """The numbers of another value of this shape, or one that is repeated to it."""
    layouts = [out.like.stride(), source.like.expand(out.like.shape).stride()]
    return [
        f"{out.type} *restrict to = {pointer(out)};",
        f"const {source.type} *copied = {pointer(source)};",
        *loops(out.like.shape, layouts, lambda t, f: [f"to[{t}] = copied[{f}];"]),
    ]


PICKS: dict[str, Callable[..., list[str]]] = {
    "index_select": _index_select,
    "index": _index,
    "gather": _gather,
    "scatter_add": _scatter_add,
    "select_backward": _select_back,
    "slice_backward": _slice_back,
    "cat": _cat,
    "stack": _stack,
    "constant_pad_nd": _padded,
}
"""Names in torch -> (the result, its arguments by name) -> C."""
