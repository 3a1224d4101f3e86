"""Operations that write over the same value one after the other, as one loop, or row by row."""

from __future__ import annotations

from typing import Any

from weft.compiled import products
from weft.compiled.loops import Value, block, loops, pointer
from weft.compiled.operations import Uncompiled, expression

Calls = list[tuple[str, dict[str, Any]]]
"""Operations, and their arguments by name."""

ADDED = "addmm"
"""The operation in place that goes row by row: a product is added."""


def chain(calls: Calls, out: Value) -> list[str]:
    """The C of operations on single numbers and of products that are added to `out`."""
    if all(name != ADDED for name, _ in calls):
        return _numbers(calls, out)
    many, left = divmod(out.like.shape[0], tile := products.block(out.like.shape[0]))
    lines = [f"for (long row = 0; row < {many * tile}; row += {tile}) {{", *_rows(calls, out, tile, "row"), "}"]
    return [*lines, *(block(_rows(calls, out, left, str(many * tile))) if left else [])]


def _rows(calls: Calls, out: Value, many: int, start: str) -> list[str]:
    """So many rows, which stay where the processor has just been."""
    part, lines, others = out.rows(many, start), list[str](), Calls()
    for name, given in calls:
        if name != ADDED:
            narrow = {k: v.spread(out).rows(many, start) if isinstance(v, Value) else v for k, v in given.items()}
            others.append((name, narrow))
            continue
        if given["alpha"] != 1 or given["beta"] != 1:
            raise Uncompiled("products that are added with factors")
        lines += block(_numbers(others, part)) if others else []
        lines += block(products.text(part, given["mat1"].rows(many, start), given["mat2"], keep=True))
        others = []
    return [*lines, *(block(_numbers(others, part)) if others else [])]


def _numbers(calls: Calls, out: Value) -> list[str]:
    """One loop, in which the value so far is `x`."""
    operands, statements, read = [out], list[str](), False
    for name, given in calls:
        words = {}
        for key, value in given.items():
            if isinstance(value, Value) and value.place is out.place:
                if not value.same(out):
                    raise Uncompiled("an operation reads what it writes in another order")
                words[key] = "x"
                read = read or (not statements and name != "copy")
            elif isinstance(value, Value):
                words[key] = f"from{len(operands)}[at{len(operands)}]"
                operands.append(value.spread(out))
        likes = {key: value.like if isinstance(value, Value) else value for key, value in given.items()}
        statements.append(f"x = {expression(name, likes, words, out.like.dtype)};")

    def body(to: str, *others: str) -> list[str]:
        places = [f"const long at{i} = {place};" for i, place in enumerate(others, 1)]
        return [f"{out.type} x{f' = to[{to}]' if read else ''};", *places, *statements, f"to[{to}] = x;"]

    names = [f"const {x.type} *from{i} = {pointer(x)};" for i, x in enumerate(operands[1:], 1)]
    layouts = [x.like.stride() for x in operands]
    return [f"{out.type} *restrict to = {pointer(out)};", *names, *loops(out.like.shape, layouts, body)]
