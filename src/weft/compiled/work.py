"""Graphs as pieces of C that follow one another, and where the values that these use lie."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.fx import GraphModule, Node
from torch.fx.node import map_arg

from weft.compiled.chain import ADDED, chain
from weft.compiled.loops import Place, Value, block, pointer
from weft.compiled.operations import POINTWISE, TYPES, Uncompiled
from weft.compiled.picks import PICKS, copied
from weft.compiled.products import PRODUCTS
from weft.compiled.scan import SCAN
from weft.compiled.sums import SUMS

WHOLE = {**PRODUCTS, **SUMS, **PICKS}
"""What is not done number by number."""

LINE = 64
"""Bytes of a line of the cache."""


class Piece(NamedTuple):
    """A piece of C, once it is known where values lie."""

    lines: Callable[[], list[str]]
    places: Sequence[Place]  # which it uses


class Work:
    """What a program does, piece by piece."""

    def __init__(self, loops: Sequence[tuple[GraphModule, GraphModule | None]]) -> None:
        """`loops`: see `weft.compiled.program.written`."""
        self.loops, self.constants, self.pieces = loops, list[Tensor](), list[Piece]()
        self._values: dict[Node, Any] = {}

    def through(self, module: GraphModule, inputs: Sequence[Value], kept: int = 0) -> list[Value]:
        """The results of a graph for these inputs, of which it overwrites the first `kept`."""
        nodes, given, results = list[Node](), iter(inputs), list[Value]()
        for node in module.graph.nodes:
            if node.op == "placeholder":
                self._values[node] = next(given)
            elif node.op == "get_attr":
                self.constants.append(getattr(module, str(node.target)).contiguous())
                self._values[node] = Value(Place(f"constant{len(self.constants) - 1}"), like(self.constants[-1]))
            elif node.op == "output":
                if not all(isinstance(x, Node) for x in node.args[0]):
                    raise Uncompiled(f"results {node.args[0]}")
                results = [self._values[x] for x in node.args[0]]
            elif self._valued(node):
                nodes.append(node)
        for group in self._grouped(self._gathered(nodes, {value.place for value in inputs[:kept]})):
            if group[0].target is SCAN:
                self._loop(group[0])
            else:
                used = [self._values[x] for node in group for x in (node, *node.all_input_nodes)]
                self._put(partial(self._group, group), *used)
        return results

    def ended(self, results: Sequence[Value]) -> list[Tensor]:
        """Have the results where the caller looks for them, and say what they are like."""
        made = []
        for i, value in enumerate(results):
            whole = torch.empty(value.like.shape, dtype=value.like.dtype, device="meta")
            if not value.place.base and value.same(Value(value.place, whole)) and value.place.size == whole.nbytes:
                value.place.base = f"out{i}"  # it is made there
            else:
                self._put(partial(copied, Value(Place(f"out{i}"), whole), value), value)
            made.append(whole)
        return made

    def laid(self) -> int:
        """Give each value a place in the program's own memory while it is used; how large that is."""
        places: dict[Place, None] = {}  # in the order in which they are written
        for i, piece in enumerate(self.pieces):
            for place in piece.places:
                if not place.base:
                    place.first = place.first if place in places else i
                    place.last, places[place] = i, None
        laid = list[Place]()
        for place in places:
            for other in sorted((p for p in laid if p.last >= place.first), key=lambda p: p.start):
                if other.start - place.start >= place.size:
                    break
                place.start = max(place.start, -(-(other.start + other.size) // LINE) * LINE)
            laid.append(place)
        return max((place.start + place.size for place in laid), default=0)

    def _put(self, lines: Callable[[], list[str]], *used: Any) -> None:
        places = [value.place for value in used if isinstance(value, Value)]
        self.pieces.append(Piece(lambda: block(lines()), places))

    def _valued(self, node: Node) -> bool:
        """Find the value of a node, and whether something has to run for it."""
        values, args = self._values, node.args
        if node.target is operator.getitem:
            values[node] = values[args[0]][args[1]]  # type: ignore[index]
            return False
        if not isinstance(node.target, torch._ops.OpOverload):
            raise Uncompiled(str(node.target))
        first: Any = values[args[0]] if args and isinstance(args[0], Node) else None
        if first is not None and _writes(node):
            turns = _name(node) in _TURNS
            if turns:
                node.target(turned := first.like.detach(), *args[1:])
                first = first.viewed(turned)
            values[node] = first
            return not turns
        options = {key: value for key, value in node.kwargs.items() if key not in ("device", "pin_memory", "layout")}
        inputs, options = map_arg((args, options), lambda n: values[n].like)
        try:
            found: Any = node.target(*inputs, **options)
        except (NotImplementedError, RuntimeError) as error:  # nothing is known of it without its numbers
            raise Uncompiled(str(error)) from error
        parts = list(found) if isinstance(found, list | tuple) else [found]
        if not all(isinstance(x, Tensor) and x.is_meta and x.dtype in TYPES and x.numel() for x in parts):
            raise Uncompiled(f"{node.target} gives {found}")
        views = first is not None and _storage(parts[0]) == _storage(first.like)
        if len(parts) > 1 and not views and node.target is not SCAN:
            raise Uncompiled(f"{node.target} gives several tensors")
        made = [first.viewed(x) if views else Value(Place(size=_extent(x) * x.itemsize), x) for x in parts]
        values[node] = made if isinstance(found, list | tuple) else made[0]
        return not views

    def _gathered(self, nodes: list[Node], kept: set[Place]) -> list[Node]:
        """The nodes with the updates of a carry beside each other, at the last of them, where nothing between minds."""
        order, values, writers = list(nodes), self._values, dict[Place, list[Node]]()
        for node in nodes:
            if _writes(node) and values[node].place in kept:
                writers.setdefault(values[node].place, []).append(node)

        def read(node: Node) -> set[Place]:
            return {values[x].place for x in node.all_input_nodes if isinstance(values[x], Value)}

        for place, some in writers.items():
            for node in reversed(some[:-1]):
                start, own = order.index(node), read(node)
                end = next(i for i in range(start + 1, len(order)) if order[i] in some)
                between = order[start + 1 : end]
                if not any(place in read(n) or (_writes(n) and values[n].place in own) for n in between):
                    order[start:end] = [*between, node]
        return order

    def _grouped(self, nodes: list[Node]) -> list[list[Node]]:
        """Consecutive nodes that write over the same value, number by number or row by row."""
        groups: list[list[Node]] = []
        for node in nodes:
            last = groups[-1][-1] if groups else node
            chained = last is not node and _writes(node) and _goes(node) and _goes(last)
            if chained and self._values[node].same(self._values[last]):
                groups[-1].append(node)
            else:
                groups.append([node])
        return groups

    def _group(self, group: list[Node]) -> list[str]:
        out: Value = self._values[group[0]]
        calls = [(_name(node), self._arguments(node)) for node in group]
        if _goes(group[0]):
            return chain(calls, out)
        name, given = calls[0]
        if name not in WHOLE:
            raise Uncompiled(name)
        return WHOLE[name](out, **given)

    def _arguments(self, node: Node) -> dict[str, Any]:
        """All arguments of an operation by name."""
        taken = node.target._schema.arguments  # type: ignore[union-attr]
        named = {a.name: a.default_value for a in taken if a.has_default_value()}
        named |= {a.name: x for a, x in zip(taken, node.args, strict=False)}
        found: dict[str, Any] = map_arg({**named, **node.kwargs}, lambda n: self._values[n])
        return found

    def _loop(self, node: Node) -> None:
        """A loop over steps: from the first carry, copied, to the last one."""
        found: Any = map_arg(node.args, lambda n: self._values[n])
        number, many, rows, key, flat, tables = found
        graph, end = self.loops[number]
        carry, given, batches = self._values[node], flat[many:], rows.like
        if batches.stride(1) != 1:
            raise Uncompiled("batches whose rows are apart")
        for own, first in zip(carry, flat, strict=False):
            self._put(partial(copied, own, first), own, first)
        begin, label = len(self.pieces), f"end{len(self.pieces)}"

        def opening() -> list[str]:
            return [
                f"{{ const int64_t *all = {pointer(rows)};",
                f"for (int64_t step = 0; step < {batches.shape[0]}; step++) {{",
                f"const int64_t *batch = all + step * {batches.stride(0)}, *number = &step;",
                "bool real = false;",
                f"for (long k = 0; k < {batches.shape[1]}; k++) real = real || batch[k] >= 0;",
                "if (!real) continue;",
            ]

        self.pieces.append(Piece(opening, [rows.place]))
        if end is not None:
            (over,) = self.through(end, [*carry, *given])
            self._put(lambda: [f"if (*({pointer(over)})) goto {label};"], over)
        batch, step = (Value(Place(name), like(x)) for name, x in (("batch", batches[0]), ("number", batches[0, 0])))
        new = self.through(graph, [*carry, *given, *tables, key, batch, step], many)
        for value, own in zip(new, carry, strict=True):
            if not value.same(own):
                self._put(partial(copied, own, value), own, value)
        inside = {place for piece in self.pieces[begin:] for place in piece.places}
        lasting = [value.place for value in (rows, key, *flat, *tables, *carry) if value.place in inside]
        self.pieces.append(Piece(lambda: ["}", f"{label}:; }}"], lasting))  # these are read by every turn of the loop


_TURNS = ("squeeze", "unsqueeze", "t", "transpose")
"""Operations in place that only look at a value in another way."""


def _name(node: Node) -> str:
    name: str = node.target._schema.name.split("::")[1]  # type: ignore[union-attr]
    return name[:-1] if _writes(node) else name


def _goes(node: Node) -> bool:
    """It is done number by number or row by row."""
    return _name(node) in POINTWISE or (_name(node) == ADDED and _writes(node))


def _writes(node: Node) -> bool:
    """It writes over its first argument."""
    returns = node.target._schema.returns  # type: ignore[union-attr]
    return any(value.alias_info is not None and value.alias_info.is_write for value in returns)


def like(x: Tensor) -> Tensor:
    """A tensor of this shape, these strides and this type, without memory."""
    if x.dtype not in TYPES or not x.numel():
        raise Uncompiled(f"{x.dtype} {list(x.shape)}")
    return torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device="meta")


def _storage(x: Tensor) -> int:
    return int(x.untyped_storage()._cdata)


def _extent(x: Tensor) -> int:
    return 1 + sum((n - 1) * s for n, s in zip(x.shape, x.stride(), strict=True))
