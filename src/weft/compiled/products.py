"""Products, in C: which of those of products.h one is."""

from __future__ import annotations

from collections.abc import Callable

import torch

from weft.compiled.loops import Value, pointer

MOST = {"AVX512": 12, "AVX2": 3}.get(torch.backends.cpu.get_cpu_capability(), 3)
"""Rows of a block of sums: two vectors of 64 bytes of each have to stay in registers."""


def block(rows: int, most: int = MOST) -> int:
    """Rows of a block: most that fit, rather a number that leaves no rest."""
    even = [n for n in range(min(most, rows), most // 2, -1) if rows % n == 0]
    return even[0] if even else min(most, rows)


def text(c: Value, a: Value, b: Value, keep: bool) -> list[str]:
    """C for c = a b, or with `keep` for c += a b, of matrices."""
    (rows, inner), columns = a.like.shape, b.like.shape[1]
    cm, cn = _strides(c)
    am, ak = _strides(a)
    bk, bn = _strides(b)
    kept, name = str(keep).lower(), c.type
    to = ", ".join((pointer(c), pointer(a), pointer(b)))
    back = ", ".join((pointer(c), pointer(b), pointer(a)))  # the transposed product
    if cn == bn == 1 and columns > 3:
        return [f"outer_{name}({to}, {rows}, {columns}, {inner}, {cm}, {am}, {ak}, {bk}, {kept}, {block(rows)});"]
    if cm == am == 1 and rows > 3:
        return [f"outer_{name}({back}, {columns}, {rows}, {inner}, {cn}, {bn}, {bk}, {ak}, {kept}, {block(columns)});"]
    if ak == bk == 1:
        if rows <= columns:
            return [f"dot_{name}({to}, {rows}, {columns}, {inner}, {cm}, {cn}, {am}, {bn}, {kept}, {block(rows)});"]
        return [f"dot_{name}({back}, {columns}, {rows}, {inner}, {cn}, {cm}, {bn}, {am}, {kept}, {block(columns)});"]
    return [f"plain_{name}({to}, {rows}, {columns}, {inner}, {cm}, {cn}, {am}, {ak}, {bk}, {bn}, {kept});"]


def _strides(x: Value) -> tuple[int, int]:
    """Of an axis of one number it does not matter."""
    first, second = (1 if n == 1 else s for n, s in zip(x.like.shape, x.like.stride(), strict=True))
    return first, second


def _mm(out: Value, self: Value, mat2: Value) -> list[str]:
    return text(out, self, mat2, keep=False)


def _mv(out: Value, self: Value, vec: Value) -> list[str]:
    return _mm(out.viewed(out.like.unsqueeze(1)), self, vec.viewed(vec.like.unsqueeze(1)))


def _dot(out: Value, self: Value, tensor: Value) -> list[str]:
    row, column = self.viewed(self.like.unsqueeze(0)), tensor.viewed(tensor.like.unsqueeze(1))
    return _mm(out.viewed(out.like.view(1, 1)), row, column)


def _bmm(out: Value, self: Value, mat2: Value) -> list[str]:
    pair = (x.rows(1, "pair") for x in (out, self, mat2))
    body = _mm(*(x.viewed(x.like.squeeze(0)) for x in pair))
    return [f"for (long pair = 0; pair < {out.like.shape[0]}; pair++) {{", *body, "}"]


PRODUCTS: dict[str, Callable[..., list[str]]] = {"mm": _mm, "mv": _mv, "dot": _dot, "bmm": _bmm}
"""Names in torch -> (the result, its arguments by name) -> C."""
