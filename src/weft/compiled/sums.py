"""Operations along axes, in C: sums and their like, the largest number and its place, running sums, softmax."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from weft.compiled.loops import IN_ORDER, Value, loops, pointer
from weft.compiled.operations import SUFFIXES, Uncompiled

_SUM = "#pragma omp simd reduction(+ : all)"


def _sum(out: Value, self: Value, dim: Sequence[int] | None = None, **_: Any) -> list[str]:
    return _reduced(out, self, dim, "all += x;")


def _mean(out: Value, self: Value, dim: Sequence[int] | None = None, **_: Any) -> list[str]:
    return _reduced(out, self, dim, "all += x;", end=f"all / {self.like.numel() // out.like.numel()}")


def _norm(out: Value, self: Value, ord: float, dim: Sequence[int] | None = None, **_: Any) -> list[str]:
    if ord != 2:
        raise Uncompiled(f"norms of order {ord}")
    return _reduced(out, self, dim, "all += x * x;", end=f"sqrt{SUFFIXES[out.like.dtype]}(all)")


def _any(out: Value, self: Value, dim: Any = None, **_: Any) -> list[str]:
    return _reduced(out, self, [dim] if isinstance(dim, int) else dim, "all = all || x;")


def _all(out: Value, self: Value, dim: Any = None, **_: Any) -> list[str]:
    return _reduced(out, self, [dim] if isinstance(dim, int) else dim, "all = all && x;", start="true")


def _largest(out: Value, self: Value, dim: Sequence[int] | None = None, **_: Any) -> list[str]:
    return _reduced(out, self, dim, "all = x > all || x != x ? x : all;", start="-INFINITY")


def _smallest(out: Value, self: Value, dim: Sequence[int] | None = None, **_: Any) -> list[str]:
    return _reduced(out, self, dim, "all = x < all || x != x ? x : all;", start="INFINITY")


def _reduced(
    out: Value, self: Value, dim: Sequence[int] | None, turn: str, start: str = "0", end: str = "all"
) -> list[str]:
    """What becomes of `all` by a `turn` for every number `x` along some axes."""
    if "INFINITY" in start and out.like.dtype not in SUFFIXES:
        raise Uncompiled("the largest of whole numbers")
    shape, source = self.like.shape, self.like.stride()
    over = sorted({d % len(shape) for d in dim} if dim else range(len(shape)))
    kept = [d for d in range(len(shape)) if d not in over]
    strides = out.like.stride()
    apart = [strides[d] for d in kept] if out.like.ndim == self.like.ndim else list(strides)
    names = [f"{out.type} *restrict to = {pointer(out)};", f"const {self.type} *from = {pointer(self)};"]
    many, step = [shape[d] for d in kept], [source[d] for d in kept]
    inner, along = [shape[d] for d in over], [[source[d] for d in over]]
    x = "const bool" if out.like.dtype == torch.bool else f"const {out.type}"
    if end == "all" and min(step, default=0) == 1 < max(many):  # numbers beside each other go to different results

        def row(k: str) -> list[str]:
            add = loops(many, [apart, step], lambda t, f: [f"{x} x = line[{f}];", turn.replace("all", f"to[{t}]")])
            return [f"const {self.type} *line = from + ({k});", *add]

        return [*names, *loops(many, [apart], lambda t: [f"to[{t}] = {start};"]), *loops(inner, along, row, IN_ORDER)]

    def total(t: str, f: str) -> list[str]:
        pragma = _SUM if turn.startswith("all +=") else IN_ORDER
        add = loops(inner, along, lambda k: [f"{x} x = line[{k}];", turn], pragma)
        return [f"const {self.type} *line = from + ({f});", f"{out.type} all = {start};", *add, f"to[{t}] = {end};"]

    return [*names, *loops(many, [apart, step], total, IN_ORDER)]


def _first(out: Value, self: Value, dim: int | None, sign: str) -> list[str]:
    """Where the largest or smallest number stands; what is none counts as that."""
    if dim is None and not self.like.is_contiguous():
        raise Uncompiled("the place of a number in a view")
    like = self.like if dim is not None else self.like.reshape(-1)
    dim, inner = (dim or 0) % like.ndim, self.viewed(like)
    others = [d for d in range(like.ndim) if d != dim]
    strides = [s for d, s in enumerate(out.like.stride()) if d != dim or out.like.ndim < like.ndim]
    layouts = [strides, [like.stride(d) for d in others]]

    def body(t: str, f: str) -> list[str]:
        at = f"line[k * {like.stride(dim)}]"
        return [
            f"const {self.type} *line = from + ({f});",
            "long best = 0;",
            f"{self.type} found = line[0];",
            f"for (long k = 1; k < {like.shape[dim]}; k++)",
            f"if (found == found && ({at} {sign} found || {at} != {at})) {{ found = {at}; best = k; }}",
            f"to[{t}] = best;",
        ]

    names = [f"{out.type} *restrict to = {pointer(out)};", f"const {self.type} *from = {pointer(inner)};"]
    return [*names, *loops([like.shape[d] for d in others], layouts, body, IN_ORDER)]


def _argmax(out: Value, self: Value, dim: int | None = None, keepdim: bool = False) -> list[str]:
    return _first(out, self, dim, ">")


def _argmin(out: Value, self: Value, dim: int | None = None, keepdim: bool = False) -> list[str]:
    return _first(out, self, dim, "<")


def _cumsum(out: Value, self: Value, dim: int, dtype: Any = None) -> list[str]:
    return _along(out, [self], dim, ["TYPE all = 0;", "{ all += a[k]; to[k] = all; }"])


def _softmax(out: Value, self: Value, dim: int, half_to_float: bool) -> list[str]:
    return _along(out, [self], dim, [*_EXPONENTIALS, "to[k] = expNUMBER(a[k] - most) / all;"])


def _log_softmax(out: Value, self: Value, dim: int, half_to_float: bool) -> list[str]:
    return _along(
        out, [self], dim, [*_EXPONENTIALS, "const TYPE less = most + logNUMBER(all);", "to[k] = a[k] - less;"]
    )


_EXPONENTIALS = [
    "TYPE most = -INFINITY, all = 0;",
    "most = a[k] > most ? a[k] : most;",
    "all += expNUMBER(a[k] - most);",
]


def _softmax_back(out: Value, grad_output: Value, output: Value, dim: int, input_dtype: Any) -> list[str]:
    return _along(
        out, [grad_output, output], dim, ["TYPE all = 0;", "all += a[k] * b[k];", "to[k] = b[k] * (a[k] - all);"]
    )


def _log_softmax_back(out: Value, grad_output: Value, output: Value, dim: int, input_dtype: Any) -> list[str]:
    lines = ["TYPE all = 0;", "all += a[k];", "to[k] = a[k] - expNUMBER(b[k]) * all;"]
    return _along(out, [grad_output, output], dim, lines)


def _along(out: Value, values: Sequence[Value], dim: int, lines: Sequence[str]) -> list[str]:
    """For each line along an axis, statements; those with a `k` run over the line."""
    like, dim = out.like, dim % max(1, out.like.ndim)
    if like.dtype not in SUFFIXES or any(v.like.dtype != like.dtype for v in values):
        raise Uncompiled("softmax of numbers of another type")
    names = [f"{out.type} *restrict whole = {pointer(out)};"]
    names += [f"const {v.type} *all_{name} = {pointer(v)};" for name, v in zip("ab", values, strict=False)]
    others = [d for d in range(like.ndim) if d != dim]
    operands = [like, *(v.like for v in values)]

    def body(t: str, *f: str) -> list[str]:
        found = [f"{out.type} *to = whole + {t};"]
        found += [f"const {out.type} *{name} = all_{name} + {x};" for name, x in zip("ab", f, strict=False)]
        for line in lines:
            text = line.replace("TYPE", out.type).replace("NUMBER", SUFFIXES[like.dtype])
            for name, operand in zip(("to", "a", "b"), operands, strict=False):
                text = text.replace(f"{name}[k]", f"{name}[k * {operand.stride(dim)}]")
            if "[k" in line:
                pragma = next(p for start, p in _PRAGMAS.items() if line.startswith(start))
                found += [pragma, f"for (long k = 0; k < {like.shape[dim]}; k++) {text}"]
            else:
                found.append(text)
        return found

    return [
        *names,
        *loops([like.shape[d] for d in others], [[x.stride(d) for d in others] for x in operands], body, ""),
    ]


_PRAGMAS = {"all +=": _SUM, "most =": "#pragma omp simd reduction(max : most)", "{": IN_ORDER, "": "#pragma omp simd"}
"""How a statement begins -> what stands before its loop."""


SUMS: dict[str, Callable[..., list[str]]] = {
    "sum": _sum,
    "mean": _mean,
    "linalg_vector_norm": _norm,
    "any": _any,
    "all": _all,
    "amax": _largest,
    "amin": _smallest,
    "argmax": _argmax,
    "argmin": _argmin,
    "cumsum": _cumsum,
    "_softmax": _softmax,
    "_log_softmax": _log_softmax,
    "_softmax_backward_data": _softmax_back,
    "_log_softmax_backward_data": _log_softmax_back,
}
"""Names in torch -> (the result, its arguments by name) -> C."""
