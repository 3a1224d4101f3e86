"""Products of a graph in which few rows meet a large weight, as a CPU does them best.

Such a product waits for the weight to come from memory. So a weight that lies transposed stands first, where MKL reads
it at twice the speed; and one that is kept in float32 is not converted for it, which would take as long again. Stacked
weights stand first where the rows fill vector registers, as batches of 16 and 32 do: two thirds of the time.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, Node
from torch.fx.node import map_arg

from weft import compiled

aten = torch.ops.aten

FEW, LARGE = 32, 2**18
"""Rows up to which, and entries of a weight from which (docs/performance.md)."""
LEAST = 9
"""With fewer rows, a transposed weight may stand second."""
LANES, MOST, STACKED = 16, 64, 2**12
"""Numbers in a register, rows up to which it pays, and entries from which, for each of several stacked weights."""


def few_rows(graph: Graph) -> None:
    """Rewrite such products."""
    for node in list(graph.nodes):
        if node.target is aten.mm.default:
            with graph.inserting_before(node):
                node = _in_full(graph, node)
        if node.target in _TURNED:
            with graph.inserting_before(node):
                _weight_first(graph, node)


def _weight_first(graph: Graph, node: Node) -> None:
    """The transpose of the weight times the transposed rows."""
    rows, weight = node.args
    if (weight.target, *weight.args[1:]) != _TURNED[node.target] or not _pays(_value(rows), _value(weight)):  # type: ignore[union-attr]
        return
    turn, *axes = _TURNED[node.target]
    found = _put(graph, node.target, weight.args[0], _put(graph, turn, rows, *axes))  # type: ignore[union-attr]
    back = _put(graph, turn, found, *axes)
    node.replace_all_uses_with(_put(graph, aten.clone.default, back, memory_format=torch.contiguous_format))
    graph.erase_node(node)


_TURNED: dict[Any, Any] = {aten.mm.default: (aten.t.default,), aten.bmm.default: (aten.transpose.int, 1, 2)}
"""Product -> how its second factor is turned."""


def _pays(rows: Tensor, weight: Tensor) -> bool:
    many, entries = rows.shape[-2], weight.shape[-2:].numel()
    if rows.ndim == 2:
        return LEAST <= many <= FEW and entries >= LARGE
    return many % LANES == 0 and 0 < many <= MOST and entries >= STACKED and weight.itemsize > 2


def _in_full(graph: Graph, node: Node) -> Node:
    """The product in float32, if it is one of 16 bits for which a weight or its gradient is converted."""
    low = _value(node).dtype
    a, b = node.args
    rows, inner = _value(a).shape
    if low.itemsize == 2 and rows <= FEW and _value(b).numel() >= LARGE and (weight := _unconverted(graph, b)):
        full = _put(graph, aten.mm.default, _full(graph, a), weight)
        node.replace_all_uses_with(_put(graph, aten._to_copy.default, full, dtype=low))
        graph.erase_node(node)
        return full
    if low.itemsize == 2 and inner <= FEW and _value(node).numel() >= LARGE:
        last, turns = node, 0
        while len(last.users) == 1 and (user := next(iter(last.users))).target is aten.t.default:
            last, turns = user, turns + 1
        if all(user.target is aten._to_copy.default and _value(user).dtype == torch.float32 for user in last.users):
            full = _put(graph, aten.mm.default, _full(graph, a), _full(graph, b))
            end = _put(graph, aten.t.default, full) if turns % 2 else full
            for user in list(last.users):
                user.replace_all_uses_with(end)
            return full
    return node


def _unconverted(graph: Graph, node: Any) -> Node | None:
    """The float32 tensor that a node is a conversion of, seen through transposes."""
    source = node.args[0]
    if node.target is aten._to_copy.default:
        return source if _value(source).dtype == torch.float32 else None
    if node.target is not aten.t.default or (found := _unconverted(graph, source)) is None:
        return None
    return found.args[0] if found.target is aten.t.default else _put(graph, aten.t.default, found)  # type: ignore[return-value]


def _full(graph: Graph, node: Any) -> Node:
    return _unconverted(graph, node) or _put(graph, aten._to_copy.default, node, dtype=torch.float32)


def _value(node: Any) -> Tensor:
    value: Tensor = node.meta["val"]
    return value


def _put(graph: Graph, target: Any, *args: Any, **options: Any) -> Node:
    """A new node that says of what shape and type its value is."""

    def like(node: Node) -> Tensor:
        value = _value(node)
        return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="meta")

    node = graph.call_function(target, args, options)
    node.meta["val"] = target(*map_arg(args, like), **options)
    return node


WAYS: dict[Any, Any] = {aten.addmm.default: compiled.WAYS[aten.addmm.default]}
"""What operations are traced to. TorchScript would take a sum with a product apart, and ask for memory twice."""
