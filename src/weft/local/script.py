"""A graph of tensor operations as a TorchScript program, so that several threads can run it at once.

TorchScript runs the same operations without Python between them, and gives the same bits. The program is written as
text and has a unit of its own, which goes when the fold goes: `torch.jit.trace` and `torch.jit.script` put what they
make into a unit that lives as long as the process. Compilers take far longer for each shape (docs/performance.md).
"""

from __future__ import annotations

import math
import operator
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

Fold = Callable[[list[Tensor], list[Tensor], Tensor, Tensor, int, int], list[Tensor]]
"""(carry, given, batches, their numbers, first, last) -> the carry after the batches from `first` to before `last`."""


def scripted(step: GraphModule, carry: int) -> Fold | None:
    """The step over consecutive batches; None if TorchScript does not take it.

    Args:
        step: takes the carry, what stays as it is, a batch and its number, and returns the new carry.
        carry: how many of its inputs are the carry.
    """
    lines, names, constants = [], dict[Node, str](), list[Tensor]()
    try:
        for node in step.graph.nodes:
            names[node] = f"v{len(names)}"
            if node.op == "get_attr":
                lines.append(f"{names[node]} = constants[{len(constants)}]")
                constants.append(getattr(step, str(node.target)))
            elif node.op == "call_function":
                lines.append(f"{names[node]} = {_call(node, names)}")
            elif node.op == "output":
                lines.append(f"return {_text(list(node.args[0]), names)}")
        inputs = [names[node] for node in step.graph.nodes if node.op == "placeholder"]
        held = [f"{name} = carry[{i}]" for i, name in enumerate(inputs[:carry])]
        held += [f"{name} = given[{i}]" for i, name in enumerate(inputs[carry:-2])]
        held += [f"{name} = {what}" for name, what in zip(inputs[-2:], ("batch", "number"), strict=True)]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # deprecated
            unit = torch.jit.CompilationUnit(_PROGRAM.format(step="\n    ".join(held + lines)))
    except (RuntimeError, _Unspoken):
        return None

    def run(*given: Any) -> list[Tensor]:
        result: list[Tensor] = unit.fold(*given, constants)
        return result

    return run


_PROGRAM = """
def step(
    carry: List[Tensor], given: List[Tensor], constants: List[Tensor], batch: Tensor, number: Tensor
) -> List[Tensor]:
    {step}

def fold(
    carry: List[Tensor], given: List[Tensor], batches: Tensor, numbers: Tensor, first: int, last: int,
    constants: List[Tensor]
) -> List[Tensor]:
    for t in range(first, last):
        carry = step(carry, given, constants, batches[t], numbers[t])
    return carry
"""


class _Unspoken(Exception):
    """There is no text for it."""


def _call(node: Node, names: dict[Node, str]) -> str:
    if node.target is operator.getitem:
        return f"{names[node.args[0]]}[{node.args[1]}]"  # type: ignore[index]
    if not isinstance(node.target, torch._ops.OpOverload):
        raise _Unspoken
    schema = node.target._schema
    named = zip([a.name for a in schema.arguments], node.args, strict=False)  # names tell overloads apart
    first, *others = [(name, _text(x, names)) for name, x in [*named, *node.kwargs.items()]] or [("", "")]
    given = [first[1], *(f"{name}={value}" for name, value in others)]
    return f"torch.ops.{schema.name.replace('::', '.')}({', '.join(given)})"


def _text(value: Any, names: dict[Node, str]) -> str:
    """A value as it is written in TorchScript."""
    match value:
        case Node():
            return names[value]
        case list() | tuple():
            return f"[{', '.join(_text(x, names) for x in value)}]"
        case float() if not math.isfinite(value):
            return f'float("{value}")'
        case None | bool() | int() | float() | str():
            return repr(value)
        case torch.device():
            return f'torch.device("{value}")'
        case torch.dtype() | torch.layout() | torch.memory_format():
            return str(value)
    raise _Unspoken
