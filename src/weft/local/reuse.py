"""Operations of a graph that write over an operand which nobody needs after them.

So a step asks for less memory, and what an operation writes is where the processor has just been.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, Node

aten = torch.ops.aten


def reuse(graph: Graph) -> None:
    """Put the variants in place of operations where values allow it."""
    place = {node: i for i, node in enumerate(graph.nodes)}
    below = dict[Node, Node]()  # a value -> one in whose memory it lies
    last = dict[Node, int]()  # where that memory is read for the last time

    def owner(node: Node) -> Node:
        while node in below:
            node = below[node]
        return node

    for node in graph.nodes:
        if _shares(node):
            below[node] = owner(node.args[0])
        last[owner(node)] = max([last.get(owner(node), 0), *(place[user] for user in node.users)])
    for node in graph.nodes:
        above = _in_place(node)
        if above is None:
            continue
        first, *others = node.all_input_nodes
        whole = owner(first)
        if whole.op == "call_function" and last[whole] == place[node] and all(owner(x) is not whole for x in others):
            node.target = above
            below[node], last[whole] = whole, last[node]


def _shares(node: Node) -> bool:
    """Its value lies in the memory of its first argument."""
    if node.op != "call_function" or not node.args or not isinstance(node.args[0], Node):
        return False
    schema = getattr(node.target if _is_operation(node) else node.args[0].target, "_schema", None)
    return schema is not None and any(value.alias_info is not None for value in schema.returns)


def _is_operation(node: Node) -> bool:
    return isinstance(node.target, torch._ops.OpOverload)


def _in_place(node: Node) -> Any:
    """The operation that writes its result over the first argument, if that is possible at all."""
    if not _is_operation(node) or torch.Tag.pointwise not in node.target.tags or not node.args:  # type: ignore[union-attr]
        return None
    first = node.args[0]
    if not isinstance(first, Node) or not _alike(first.meta.get("val"), node.meta.get("val")):
        return None
    name = node.target._schema.name.split("::")[1]  # type: ignore[union-attr]
    return getattr(getattr(aten, f"{name}_", None), node.target._overloadname, None)  # type: ignore[union-attr]


def _alike(a: Any, b: Any) -> bool:
    if not isinstance(a, Tensor) or not isinstance(b, Tensor) or a.dtype != b.dtype:
        return False
    extent = 1 + sum((size - 1) * stride for size, stride in zip(a.shape, a.stride(), strict=True))
    return a.shape == b.shape and a.stride() == b.stride() and a.numel() == extent
