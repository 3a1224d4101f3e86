"""Which of the products of products.h a product is."""

from __future__ import annotations

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
