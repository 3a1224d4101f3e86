"""What operations on single numbers are in C, by their names in torch and those of their arguments."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch._decomp import get_decompositions

aten = torch.ops.aten


class Uncompiled(Exception):
    """There is no C for it, or nothing that compiles it."""


TYPES = {
    torch.float32: "float",
    torch.float64: "double",
    torch.int64: "int64_t",
    torch.int32: "int32_t",
    torch.int16: "int16_t",
    torch.int8: "int8_t",
    torch.uint8: "uint8_t",
    torch.bool: "bool",
}

POINTWISE: dict[str, str] = {
    "add": "{self} + {alpha} * {other}",
    "sub": "{self} - {alpha} * {other}",
    "rsub": "{other} - {alpha} * {self}",
    "mul": "{self} * {other}",
    "div": "{self} / {other}",
    "remainder": "",  # depends on the type
    "floor": "FLOOR({self})",
    "round": "RINT({self})",
    "maximum": "{self} != {self} || {self} > {other} ? {self} : {other}",
    "minimum": "{self} != {self} || {self} < {other} ? {self} : {other}",
    "neg": "-{self}",
    "abs": "FABS({self})",
    "sgn": "({self} > 0) - ({self} < 0)",
    "sign": "({self} > 0) - ({self} < 0)",
    "reciprocal": "1 / {self}",
    "sqrt": "SQRT({self})",
    "rsqrt": "1 / SQRT({self})",
    "exp": "EXP({self})",
    "log": "LOG({self})",
    "log1p": "LOG1P({self})",
    "sin": "SIN({self})",
    "cos": "COS({self})",
    "tanh": "TANH({self})",
    "sigmoid": "1 / (1 + EXP(-{self}))",
    "relu": "{self} < 0 ? 0 : {self}",
    "clamp": "",  # depends on which bounds there are
    "clamp_min": "{self} < {min} ? {min} : {self}",
    "clamp_max": "{self} > {max} ? {max} : {self}",
    "pow": "POW({self}, {exponent})",
    "square": "{self} * {self}",
    "lerp": "{self} + {weight} * ({end} - {self})",
    "addcmul": "{self} + {value} * {tensor1} * {tensor2}",
    "addcdiv": "{self} + {value} * {tensor1} / {tensor2}",
    "threshold_backward": "{self} <= {threshold} ? 0 : {grad_output}",
    "tanh_backward": "{grad_output} * (1 - {output} * {output})",
    "sigmoid_backward": "{grad_output} * (1 - {output}) * {output}",
    "eq": "{self} == {other}",
    "ne": "{self} != {other}",
    "lt": "{self} < {other}",
    "le": "{self} <= {other}",
    "gt": "{self} > {other}",
    "ge": "{self} >= {other}",
    "logical_not": "!{self}",
    "logical_and": "{self} && {other}",
    "logical_or": "{self} || {other}",
    "bitwise_and": "{self} & {other}",
    "bitwise_or": "{self} | {other}",
    "bitwise_xor": "{self} ^ {other}",
    "bitwise_not": "~{self}",
    "__lshift__": "{self} << {other}",
    "__rshift__": "{self} >> {other}",
    "where": "{condition} ? {self} : {other}",
    "masked_fill": "{mask} ? {value} : {self}",
    "_to_copy": "{self}",
    "clone": "{self}",
    "copy": "{src}",
}
"""Operands have the type of the result, but for those of comparisons and conditions."""

_AS_THEY_ARE = {"eq", "ne", "lt", "le", "gt", "ge", "logical_not", "logical_and", "logical_or", "_to_copy"}
_CONDITIONS = {"condition", "mask"}
SUFFIXES = {torch.float32: "f", torch.float64: ""}
"""Of the functions of math.h."""
_FUNCTIONS = ("FLOOR", "RINT", "FABS", "SQRT", "EXP", "LOG", "LOG1P", "SIN", "COS", "TANH", "POW")


def expression(name: str, arguments: Mapping[str, Any], operand: Mapping[str, str], dtype: torch.dtype) -> str:
    """The C expression of an operation.

    Args:
        name: of the operation, without the underscore of those in place.
        arguments: all arguments of the operation by name, defaults included.
        operand: those that are tensors, as C expressions of their own types.
        dtype: of the result.

    Raises:
        Uncompiled: not with these arguments.
    """
    form = POINTWISE[name]
    if name == "clamp":
        lower, upper = (arguments[bound] is not None for bound in ("min", "max"))
        form = "({self} < {min} ? {min} : {self})" if lower else "{self}"
        form = f"{form} > {{max}} ? {{max}} : {form}" if upper else form
    if name == "bitwise_not" and dtype == torch.bool:
        form = "!{self}"
    if name == "remainder":
        form = "{self} - {other} * FLOOR({self} / {other})"
        form = form if dtype in SUFFIXES else "{other} == 0 ? 0 : ({self} % {other} + {other}) % {other}"
    if arguments.get("rounding_mode") is not None:
        raise Uncompiled("division that rounds")
    if name == "pow" and (power := arguments["exponent"]) in _POWERS:
        form = _POWERS[power]
    kept = name in _AS_THEY_ARE
    types = {key: getattr(value, "dtype", None) for key, value in arguments.items()}
    inputs = next((t for t in types.values() if t in SUFFIXES), None)
    words = {}
    for key, value in arguments.items():
        if key in operand:
            words[key] = operand[key] if kept or key in _CONDITIONS else f"({TYPES[dtype]}){operand[key]}"
        elif isinstance(value, bool | int | float):
            words[key] = number(value, inputs if kept else dtype)
    text = form.format(**words)
    for function in _FUNCTIONS:
        if f"{function}(" in text:
            if dtype not in SUFFIXES:
                raise Uncompiled(f"{name} of whole numbers")
            text = text.replace(f"{function}(", f"{function.lower()}{SUFFIXES[dtype]}(")
    return text


_POWERS: dict[Any, str] = {
    -1: "1 / {self}", -0.5: "1 / SQRT({self})", 0.5: "SQRT({self})", 2: "{self} * {self}",
    3: "{self} * {self} * {self}",
}  # fmt: skip


def number(value: float, dtype: torch.dtype | None) -> str:
    """A number as it is written in C."""
    if isinstance(value, float) and not math.isfinite(value):
        return "NAN" if value != value else ("INFINITY" if value > 0 else "-INFINITY")
    if dtype in SUFFIXES:
        return f"({TYPES[dtype]}){float(value)!r}"
    if isinstance(value, float):
        return repr(value)
    return f"{int(value)}LL" if dtype is None else f"({TYPES[dtype]}){int(value)}LL"


def _sum(start: Tensor, a: Tensor, b: Tensor, **factors: Any) -> Any:
    return NotImplemented if factors else a @ b + start


def _var_mean(x: Tensor, dim: Any = None, *, correction: float | None = None, keepdim: bool = False) -> Any:
    axes = list(range(x.ndim)) if dim is None else list(dim)
    mean = x.mean(axes, keepdim=True)
    many = math.prod(x.shape[d] for d in axes) - (1 if correction is None else correction)
    spread = (x - mean).square().sum(axes, keepdim=keepdim) / many
    return spread, mean if keepdim else mean.reshape(spread.shape)


def _nan_to_num(x: Tensor, nan: float | None = None, posinf: float | None = None, neginf: float | None = None) -> Any:
    if not x.is_floating_point():
        return x.clone()
    limits = torch.finfo(x.dtype)
    ends = (limits.min if neginf is None else neginf, limits.max if posinf is None else posinf)
    return torch.where(x != x, nan or 0.0, x).clamp(*ends)


def _var(x: Tensor, dim: Any = None, *, correction: float | None = None, keepdim: bool = False) -> Any:
    return _var_mean(x, dim, correction=correction, keepdim=keepdim)[0]


def _std(x: Tensor, dim: Any = None, *, correction: float | None = None, keepdim: bool = False) -> Any:
    return _var_mean(x, dim, correction=correction, keepdim=keepdim)[0].sqrt()


_APART = (
    aten.native_layer_norm, aten.native_layer_norm_backward, aten.log_sigmoid_forward, aten.log_sigmoid_backward,
)  # fmt: skip
WAYS: dict[Any, Any] = {
    **get_decompositions(_APART),
    aten.addmm.default: _sum,
    aten.var_mean.correction: _var_mean,
    aten.var.correction: _var,
    aten.std.correction: _std,
    aten.nan_to_num.default: _nan_to_num,
}
"""What operations are traced to that are not one here."""
