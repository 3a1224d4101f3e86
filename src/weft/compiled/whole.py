"""Operations that are not done number by number, in C: products, sums, softmax, and what picks and puts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from weft.compiled import product
from weft.compiled.loops import Value, block, loops, pointer
from weft.compiled.operations import SUFFIXES, Uncompiled, number

_OUT_OF_RANGE = "if ({at} < 0 || {at} >= {size}) return 1;"
_IN_ORDER = ""  # no pragma: turns of the loop may meet
_SUM = "#pragma omp simd reduction(+ : all)"


def _mm(out: Value, self: Value, mat2: Value) -> list[str]:
    return product.text(out, self, mat2, keep=False)


def _mv(out: Value, self: Value, vec: Value) -> list[str]:
    return _mm(out.viewed(out.like.unsqueeze(1)), self, vec.viewed(vec.like.unsqueeze(1)))


def _dot(out: Value, self: Value, tensor: Value) -> list[str]:
    row, column = self.viewed(self.like.unsqueeze(0)), tensor.viewed(tensor.like.unsqueeze(1))
    return _mm(out.viewed(out.like.view(1, 1)), row, column)


def _bmm(out: Value, self: Value, mat2: Value) -> list[str]:
    pair = (x.rows(1, "pair") for x in (out, self, mat2))
    body = _mm(*(x.viewed(x.like.squeeze(0)) for x in pair))
    return [f"for (long pair = 0; pair < {out.like.shape[0]}; pair++) {{", *body, "}"]


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

        return [*names, *loops(many, [apart], lambda t: [f"to[{t}] = {start};"]), *loops(inner, along, row, _IN_ORDER)]

    def total(t: str, f: str) -> list[str]:
        pragma = _SUM if turn.startswith("all +=") else _IN_ORDER
        add = loops(inner, along, lambda k: [f"{x} x = line[{k}];", turn], pragma)
        return [f"const {self.type} *line = from + ({f});", f"{out.type} all = {start};", *add, f"to[{t}] = {end};"]

    return [*names, *loops(many, [apart, step], total, _IN_ORDER)]


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
    return [*names, *loops([like.shape[d] for d in others], layouts, body, _IN_ORDER)]


def _argmax(out: Value, self: Value, dim: int | None = None, keepdim: bool = False) -> list[str]:
    return _first(out, self, dim, ">")


def _argmin(out: Value, self: Value, dim: int | None = None, keepdim: bool = False) -> list[str]:
    return _first(out, self, dim, "<")


def _cumsum(out: Value, self: Value, dim: int, dtype: Any = None) -> list[str]:
    return _along(out, [self], dim, ["TYPE all = 0;", "{ all += a[k]; to[k] = all; }"])


def _padded(out: Value, self: Value, pad: Sequence[int], value: float = 0) -> list[str]:
    where = out.like
    for i, (before, after) in enumerate(zip(pad[::2], pad[1::2], strict=True)):
        d = out.like.ndim - 1 - i
        if before < 0 or after < 0:
            raise Uncompiled("padding that cuts off")
        where = where.narrow(d, before, self.like.shape[d])
    return _put(out, self, where, number(value, out.like.dtype))


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


_PRAGMAS = {"all +=": _SUM, "most =": "#pragma omp simd reduction(max : most)", "{": _IN_ORDER, "": "#pragma omp simd"}
"""How a statement begins -> what stands before its loop."""


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
    dim, layouts = dim % index.like.ndim, [out.like.stride(), list(self.like.stride()), index.like.stride()]
    layouts[1][dim] = 0  # type: ignore[index]
    return [
        f"{out.type} *restrict to = {pointer(out)};",
        f"const {self.type} *from = {pointer(self)};",
        f"const {index.type} *numbers = {pointer(index)};",
        *loops(
            index.like.shape,
            layouts,
            lambda t, f, n: [
                _OUT_OF_RANGE.format(at=f"numbers[{n}]", size=self.like.shape[dim]),
                f"to[{t}] = from[{f} + numbers[{n}] * {self.like.stride(dim)}];",
            ],
            _IN_ORDER,
        ),
    ]


def _scatter_add(out: Value, self: Value, dim: int, index: Value, src: Value) -> list[str]:
    dim, layouts = dim % index.like.ndim, [list(out.like.stride()), src.like.stride(), index.like.stride()]
    layouts[0][dim] = 0  # type: ignore[index]
    return [
        *copied(out, self),
        f"const {src.type} *from = {pointer(src)};",
        f"const {index.type} *numbers = {pointer(index)};",
        *loops(
            index.like.shape,
            layouts,
            lambda t, f, n: [
                _OUT_OF_RANGE.format(at=f"numbers[{n}]", size=out.like.shape[dim]),
                f"to[{t} + numbers[{n}] * {out.like.stride(dim)}] += from[{f}];",
            ],
            _IN_ORDER,
        ),
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


def copied(out: Value, source: Value) -> list[str]:
    """The numbers of another value of this shape, or one that is repeated to it."""
    layouts = [out.like.stride(), source.like.expand(out.like.shape).stride()]
    return [
        f"{out.type} *restrict to = {pointer(out)};",
        f"const {source.type} *copied = {pointer(source)};",
        *loops(out.like.shape, layouts, lambda t, f: [f"to[{t}] = copied[{f}];"]),
    ]


WHOLE: dict[str, Callable[..., list[str]]] = {
    "mm": _mm,
    "mv": _mv,
    "dot": _dot,
    "bmm": _bmm,
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
    "constant_pad_nd": _padded,
    "_softmax": _softmax,
    "_log_softmax": _log_softmax,
    "_softmax_backward_data": _softmax_back,
    "_log_softmax_backward_data": _log_softmax_back,
    "index_select": _index_select,
    "index": _index,
    "gather": _gather,
    "scatter_add": _scatter_add,
    "select_backward": _select_back,
    "slice_backward": _slice_back,
    "cat": _cat,
    "stack": _stack,
}
"""Names in torch -> (the result, its arguments by name) -> C."""
