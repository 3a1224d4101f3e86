"""Operations that are not done number by number, in C: products, sums, softmax, and what picks and puts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from weft.compiled import product
from weft.compiled.loops import Value, loops, pointer
from weft.compiled.operations import SUFFIXES, Uncompiled

_IN_ORDER = ""  # no pragma: turns of the loop may meet
_SUM = "#pragma omp simd reduction(+ : sum)"


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
    return _summed(out, self, dim, "x", "sum")


def _mean(out: Value, self: Value, dim: Sequence[int] | None = None, **_: Any) -> list[str]:
    return _summed(out, self, dim, "x", f"sum / {self.like.numel() // out.like.numel()}")


def _norm(out: Value, self: Value, ord: float, dim: Sequence[int] | None = None, **_: Any) -> list[str]:
    if ord != 2:
        raise Uncompiled(f"norms of order {ord}")
    return _summed(out, self, dim, "x * x", f"sqrt{SUFFIXES[out.like.dtype]}(sum)")


def _summed(out: Value, self: Value, dim: Sequence[int] | None, number: str, end: str) -> list[str]:
    """Over some axes the sum of what becomes of a number `x`, and then what becomes of the `sum`."""
    shape, source = self.like.shape, self.like.stride()
    over = sorted({d % len(shape) for d in dim} if dim else range(len(shape)))
    kept = [d for d in range(len(shape)) if d not in over]
    strides = out.like.stride()
    apart = [strides[d] for d in kept] if out.like.ndim == self.like.ndim else list(strides)
    names = [f"{out.type} *restrict to = {pointer(out)};", f"const {self.type} *from = {pointer(self)};"]
    many, step = [shape[d] for d in kept], [source[d] for d in kept]
    inner, along = [shape[d] for d in over], [[source[d] for d in over]]
    if end == "sum" and min(step, default=0) == 1 < max(many):  # numbers beside each other go to different sums

        def row(k: str) -> list[str]:
            add = loops(many, [apart, step], lambda t, f: [f"const {out.type} x = line[{f}];", f"to[{t}] += {number};"])
            return [f"const {self.type} *line = from + ({k});", *add]

        return [*names, *loops(many, [apart], lambda t: [f"to[{t}] = 0;"]), *loops(inner, along, row, _IN_ORDER)]

    def total(t: str, f: str) -> list[str]:
        add = loops(inner, along, lambda k: [f"const {out.type} x = line[{k}];", f"sum += {number};"], _SUM)
        return [f"const {self.type} *line = from + ({f});", f"{out.type} sum = 0;", *add, f"to[{t}] = {end};"]

    return [*names, *loops(many, [apart, step], total, _IN_ORDER)]


def _softmax(out: Value, self: Value, dim: int, half_to_float: bool) -> list[str]:
    return _along(out, [self], dim, [*_EXPONENTIALS, "to[k] = expNUMBER(a[k] - most) / sum;"])


def _log_softmax(out: Value, self: Value, dim: int, half_to_float: bool) -> list[str]:
    return _along(
        out, [self], dim, [*_EXPONENTIALS, "const TYPE less = most + logNUMBER(sum);", "to[k] = a[k] - less;"]
    )


_EXPONENTIALS = [
    "TYPE most = -INFINITY, sum = 0;",
    "most = a[k] > most ? a[k] : most;",
    "sum += expNUMBER(a[k] - most);",
]


def _softmax_back(out: Value, grad_output: Value, output: Value, dim: int, input_dtype: Any) -> list[str]:
    return _along(
        out, [grad_output, output], dim, ["TYPE sum = 0;", "sum += a[k] * b[k];", "to[k] = b[k] * (a[k] - sum);"]
    )


def _log_softmax_back(out: Value, grad_output: Value, output: Value, dim: int, input_dtype: Any) -> list[str]:
    lines = ["TYPE sum = 0;", "sum += a[k];", "to[k] = a[k] - expNUMBER(b[k]) * sum;"]
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
                pragma = (
                    _SUM if line.startswith("sum +=") else _MOST if line.startswith("most =") else "#pragma omp simd"
                )
                found += [pragma, f"for (long k = 0; k < {like.shape[dim]}; k++) {text}"]
            else:
                found.append(text)
        return found

    return [
        *names,
        *loops([like.shape[d] for d in others], [[x.stride(d) for d in others] for x in operands], body, ""),
    ]


_MOST = "#pragma omp simd reduction(max : most)"


def _index_select(out: Value, self: Value, dim: int, index: Value) -> list[str]:
    return _picked(out, self, index, dim % self.like.ndim)


def _index(out: Value, self: Value, indices: Sequence[Value | None]) -> list[str]:
    given = [(d, x) for d, x in enumerate(indices) if x is not None]
    if len(given) != 1 or given[0][1].like.ndim != 1 or "int" not in given[0][1].type:
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
            lambda t, f, n: [f"to[{t}] = from[{f} + numbers[{n}] * {self.like.stride(dim)}];"],
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
            lambda t, f, n: [f"to[{t} + numbers[{n}] * {out.like.stride(dim)}] += from[{f}];"],
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


def _put(out: Value, part: Value, where: Tensor) -> list[str]:
    """Zeros, and a part where it belongs."""
    zeros = loops(out.like.shape, [out.like.stride()], lambda t: [f"to[{t}] = 0;"])
    return [f"{out.type} *restrict to = {pointer(out)};", *zeros, "{", *copied(out.viewed(where), part), "}"]


def _cat(out: Value, tensors: Sequence[Value], dim: int = 0) -> list[str]:
    dim, at, lines = dim % out.like.ndim, 0, list[str]()
    for part in tensors:
        many = part.like.shape[dim]
        lines += ["{", *copied(out.viewed(out.like.narrow(dim, at, many)), part), "}"]
        at += many
    return lines


def _stack(out: Value, tensors: Sequence[Value], dim: int = 0) -> list[str]:
    dim %= out.like.ndim
    return [x for i, part in enumerate(tensors) for x in ("{", *copied(out.viewed(out.like.select(dim, i)), part), "}")]


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
