"""A graph of one client's turn as a C program, which runs the turns of many clients, one client after the other.

So the weights of a client stay in a core's cache through all its steps, and nothing stands between two operations.
Consecutive operations in place are one loop, and a weight meets all that is added to it row by row.
"""

from __future__ import annotations

import ctypes
import operator
from collections.abc import Callable, Sequence
from functools import partial
from importlib.resources import files
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.fx import GraphModule, Node
from torch.fx.node import map_arg

from weft.compiled import product
from weft.compiled.compiler import compiled, function
from weft.compiled.loops import Place, Value, loops, pointer
from weft.compiled.operations import POINTWISE, TYPES, Uncompiled, expression
from weft.compiled.scan import SCAN
from weft.compiled.whole import WHOLE, copied

Calls = list[tuple[str, dict[str, Any]]]
"""Operations, and their arguments by name."""


class Program:
    """The turns of many clients."""

    def __init__(
        self, text: str, own: int, constants: list[Tensor], stacked: Sequence[bool], made: list[Tensor]
    ) -> None:
        """Compile.

        Args:
            text: the C text.
            own: bytes that it needs for itself.
            constants: its last inputs.
            stacked: which of the others have a part for each client.
            made: what one client's results are like.
        """
        library = compiled(text, torch.backends.cpu.get_cpu_capability() == "AVX512")
        self._run = function(library, "turns", ctypes.c_long, *[ctypes.c_void_p] * 3)
        self._library, self._own, self._constants, self._stacked, self._made = library, own, constants, stacked, made

    def results(self, clients: int) -> list[Tensor]:
        """Memory for the results of so many clients."""
        return [torch.empty(clients, *x.shape, dtype=x.dtype) for x in self._made]

    def __call__(self, inputs: Sequence[Tensor], results: Sequence[Tensor], first: int, clients: int) -> None:
        """Write the results of so many clients from a first one on.

        Args:
            inputs: contiguous; those that have a part for each client with the axis of clients first.
            results: memory for those of all clients.
            first: the place of the first client.
            clients: how many.
        """
        tensors = [*inputs, *self._constants, *results]
        stacked = [*self._stacked, *(False for _ in self._constants), *(True for _ in results)]
        apart = [x.stride(0) * x.itemsize if s else 0 for x, s in zip(tensors, stacked, strict=True)]
        starts = [x.data_ptr() + first * a for x, a in zip(tensors, apart, strict=True)]
        own, many = torch.empty(self._own, dtype=torch.uint8), len(tensors)
        self._run(clients, (ctypes.c_void_p * many)(*starts), (ctypes.c_long * many)(*apart), own.data_ptr())


def written(
    turn: GraphModule,
    loops: Sequence[tuple[GraphModule, GraphModule | None]],
    sample: Sequence[Tensor],
    stacked: Sequence[bool],
) -> Program:
    """The program of a turn.

    Args:
        turn: one client's turn: a graph in which `weft::scan` stands for a loop over steps.
        loops: of each a step, which takes the carry, which it may overwrite, what is given, the tables, a key, the rows
            of a batch and its number, and returns the new carry; and what tells from the carry and what is given
            whether no further step can change anything, or None.
        sample: what the turn takes.
        stacked: which of it has a part for each client.

    Raises:
        Uncompiled: an operation has no C here, there is no compiler, or it does not take the text.
    """
    work = _Work(loops)
    results = work.through(turn, [Value(Place(f"in{i}"), _like(x)) for i, x in enumerate(sample)])
    made = work.ended(results)
    own, lines = work.laid(), [line for piece in work.pieces for line in piece.lines()]
    names = [f"in{i}" for i in range(len(sample))] + [f"constant{i}" for i in range(len(work.constants))]
    names += [f"out{i}" for i in range(len(made))]
    products = files("weft.compiled").joinpath("products.h").read_text(encoding="utf-8")
    text = _TEXT.format(
        most=product.MOST,
        products=f"#define REAL float\n{products}\n#undef REAL\n#define REAL double\n{products}",
        inputs="\n".join(f"char *{name} = tensors[{i}] + client * apart[{i}];" for i, name in enumerate(names)),
        turn="\n".join(lines),
    )
    return Program(text, own, work.constants, tuple(stacked), made)


_TEXT = """
#include <math.h>
#include <stdbool.h>
#include <stdint.h>
#define INLINE static inline __attribute__((always_inline))
#define UNROLLED _Pragma("GCC unroll 16")
#define MOST {most}
{products}

void turns(long clients, char *const *tensors, const long *apart, char *own) {{
    for (long client = 0; client < clients; client++) {{
        {inputs}
        {turn}
    }}
}}
"""


class _Piece(NamedTuple):
    """A piece of C, once it is known where values lie."""

    lines: Callable[[], list[str]]
    places: list[Place]  # which it uses


class _Work:
    """Graphs in pieces that are some lines of C each, and the values that these use."""

    def __init__(self, loops: Sequence[tuple[GraphModule, GraphModule | None]]) -> None:
        self.loops, self.constants, self.pieces = loops, list[Tensor](), list[_Piece]()
        self.values: dict[Node, Any] = {}

    def through(self, module: GraphModule, inputs: Sequence[Value], kept: int = 0) -> list[Value]:
        """The results of a graph for these inputs, of which it overwrites the first `kept`."""
        nodes, given, results = list[Node](), iter(inputs), list[Value]()
        for node in module.graph.nodes:
            if node.op == "placeholder":
                self.values[node] = next(given)
            elif node.op == "get_attr":
                self.constants.append(getattr(module, str(node.target)).contiguous())
                self.values[node] = Value(Place(f"constant{len(self.constants) - 1}"), _like(self.constants[-1]))
            elif node.op == "output":
                results = [self.values[x] for x in node.args[0]]
            elif self._valued(node):
                nodes.append(node)
        for group in self._grouped(_gathered(nodes, self.values, {value.place for value in inputs[:kept]})):
            if group[0].target is SCAN:
                self._looped(group[0])
            else:
                used = [self.values[x] for node in group for x in (node, *node.all_input_nodes)]
                self._piece(partial(self._group, group), used)
        return results

    def _piece(self, lines: Callable[[], list[str]], used: Sequence[Any]) -> None:
        places = [value.place for value in used if isinstance(value, Value)]
        self.pieces.append(_Piece(lambda: _block(lines()), places))

    def _valued(self, node: Node) -> bool:
        """Find the value of a node, and whether something has to run for it."""
        if node.target is operator.getitem:
            self.values[node] = self.values[node.args[0]][node.args[1]]  # type: ignore[index]
            return False
        if node.target is SCAN:
            flat, many = node.args[4], node.args[1]
            carry = [self.values[x].like for x in flat[:many]]  # type: ignore[index]
            self.values[node] = [self._new(torch.empty_like(x, memory_format=torch.contiguous_format)) for x in carry]
            return True
        if not isinstance(node.target, torch._ops.OpOverload):
            raise Uncompiled(str(node.target))
        first = self.values[node.args[0]] if node.args and isinstance(node.args[0], Node) else None
        if first is not None and _writes(node):
            if _name(node) in _TURNS:
                turned = first.like.detach()
                node.target(turned, *node.args[1:])
                first = first.viewed(turned)
            self.values[node] = first
            return _name(node) not in _TURNS
        options = {key: value for key, value in node.kwargs.items() if key not in ("device", "pin_memory", "layout")}
        inputs, options = map_arg((node.args, options), lambda n: self.values[n].like)
        try:
            like = node.target(*inputs, **options)
        except (NotImplementedError, RuntimeError) as error:  # nothing is known of it without its numbers
            raise Uncompiled(str(error)) from error
        for part in like if isinstance(like, list | tuple) else [like]:
            if not isinstance(part, Tensor) or part.dtype not in TYPES or not part.numel() or not part.is_meta:
                raise Uncompiled(f"{node.target} gives {part}")
        if first is not None and _storage(like) == _storage(first.like):
            self.values[node] = _each(first.viewed, like)
            return False
        if not isinstance(like, Tensor):
            raise Uncompiled(f"{node.target} gives several tensors")
        self.values[node] = self._new(like)
        return True

    def _new(self, like: Tensor) -> Value:
        return Value(Place(size=_extent(like) * like.itemsize), like)

    def _grouped(self, nodes: list[Node]) -> list[list[Node]]:
        """Consecutive nodes that write over the same value, number by number or row by row."""
        groups: list[list[Node]] = []
        for node in nodes:
            joins = (
                groups
                and all(_goes(n) for n in (node, groups[-1][-1]))
                and _writes(node)
                and self.values[node].same(self.values[groups[-1][-1]])
            )
            groups[-1].append(node) if joins else groups.append([node])
        return groups

    def _looped(self, node: Node) -> None:
        """A loop over steps: from the first carry, copied, to the last one."""
        number, many, rows, key, flat, tables = map_arg(node.args, self.values.get)
        carry, batches = self.values[node], rows.like
        if batches.ndim != 2 or batches.stride(1) != 1:
            raise Uncompiled("batches whose rows are apart")
        for first, own in zip(flat, carry, strict=False):
            self._piece(partial(copied, own, first), [own, first])
        begin = len(self.pieces)
        one = Value(Place("batch"), torch.empty(batches.shape[1], dtype=batches.dtype, device="meta"))
        step = Value(Place("number"), torch.empty((), dtype=torch.int64, device="meta"))

        def head() -> list[str]:
            return [
                "{",
                f"const int64_t *all = {pointer(rows)};",
                f"for (int64_t step = 0; step < {batches.shape[0]}; step++) {{",
                f"char *batch = (char *)(all + step * {batches.stride(0)}), *number = (char *)&step;",
                "bool real = false;",
                f"for (long k = 0; k < {batches.shape[1]}; k++) real = real || ((const int64_t *)batch)[k] >= 0;",
                "if (!real) continue;",
            ]

        self.pieces.append(_Piece(head, [rows.place]))
        graph, ended = self.loops[number]
        if ended is not None:
            (end,) = self.through(ended, [*carry, *flat[many:]])
            self._piece(lambda: [f"if (*({pointer(end)})) goto ended{begin};"], [end])
        given = [*carry, *flat[many:], *tables, key, one, step]
        for new, old in zip(self.through(graph, given, many), carry, strict=True):
            if new.place.base:
                raise Uncompiled("a new carry is an input")
            if not new.same(old):
                self._piece(partial(copied, old, new), [old, new])
        inside = [place for piece in self.pieces[begin:] for place in piece.places]
        outside = {value.place for value in (rows, key, *flat, *tables, *carry)}
        self.pieces.append(
            _Piece(
                lambda: ["}", f"ended{begin}:;", "}"],
                [place for place in inside if place in outside] + [c.place for c in carry],
            )
        )

    def ended(self, results: Sequence[Value]) -> list[Tensor]:
        """Have the results where the caller looks for them; what they are like."""
        made = []
        for i, value in enumerate(results):
            like = torch.empty(value.like.shape, dtype=value.like.dtype, device="meta")
            place, base = value.place, f"out{i}"
            if not place.base and value.same(Value(place, like)) and place.size == like.nbytes:
                place.base = base  # it is made there
            else:
                self._piece(partial(copied, Value(Place(base), like), value), [value])
            made.append(like)
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
                place.start = max(place.start, -(-(other.start + other.size) // _LINE) * _LINE)
            laid.append(place)
        return max((place.start + place.size for place in laid), default=0)

    def _arguments(self, node: Node) -> dict[str, Any]:
        """All arguments of an operation by name."""
        named = {a.name: a.default_value for a in node.target._schema.arguments if a.has_default_value()}  # type: ignore[union-attr]
        named |= {a.name: x for a, x in zip(node.target._schema.arguments, node.args, strict=False)}  # type: ignore[union-attr]
        found: dict[str, Any] = map_arg({**named, **node.kwargs}, lambda n: self.values[n])
        return found

    def _group(self, group: list[Node]) -> list[str]:
        out: Value = self.values[group[0]]
        calls = [(_name(node), self._arguments(node)) for node in group]
        if not _goes(group[0]):
            ((name, given),) = calls
            if name not in WHOLE:
                raise Uncompiled(name)
            return WHOLE[name](out, **given)
        if not any(name in _ADDED for name, _ in calls):
            return _chain(calls, out)
        tile = product.block(out.like.shape[0])
        many, left = divmod(out.like.shape[0], tile)
        lines = [f"for (long row = 0; row < {many * tile}; row += {tile}) {{", *_rows(calls, out, tile, "row"), "}"]
        return [*lines, *(_block(_rows(calls, out, left, str(many * tile))) if left else [])]


def _rows(calls: Calls, out: Value, many: int, start: str) -> list[str]:
    """What a group does to so many rows of its result."""
    part, lines = out.rows(many, start), list[str]()
    chain: Calls = []
    for name, given in calls:
        if name in _ADDED:
            lines += _block(_chain(chain, part)) if chain else []
            if given["alpha"] != 1 or given["beta"] != 1:
                raise Uncompiled(f"{name} with factors")
            lines += _block(product.text(part, given["mat1"].rows(many, start), given["mat2"], True))
            chain = []
        else:
            narrow = {}
            for key, value in given.items():
                if isinstance(value, Value):
                    value = value.viewed(value.like.expand(out.like.shape)).rows(many, start)
                narrow[key] = value
            chain.append((name, narrow))
    return [*lines, *(_block(_chain(chain, part)) if chain else [])]


def _block(lines: list[str]) -> list[str]:
    return ["{", *lines, "}"]


def _chain(calls: Calls, out: Value) -> list[str]:
    """One loop for operations that write number by number over the same value, one after the other."""
    operands, statements, known = [out], list[str](), False  # known: the value so far is in `x`
    read = False
    for name, given in calls:
        words = {}
        for key, value in given.items():
            if isinstance(value, Value) and value.place is out.place:
                if not value.same(out) or value.shift != out.shift:
                    raise Uncompiled("an operation reads what it writes in another order")
                words[key] = "x"
                read = read or (not known and name != "copy")
            elif isinstance(value, Value):
                words[key] = f"from{len(operands)}[at{len(operands)}]"
                operands.append(value.viewed(value.like.expand(out.like.shape)))
        kinds = {key: value.like if isinstance(value, Value) else value for key, value in given.items()}
        statements.append(f"x = {expression(name, kinds, words, out.like.dtype)};")
        known = True
    lines = [f"{out.type} *restrict to = {pointer(out)};"]
    lines += [f"const {x.type} *from{i} = {pointer(x)};" for i, x in enumerate(operands[1:], 1)]

    def body(to: str, *others: str) -> list[str]:
        places = [f"const long at{i} = {place};" for i, place in enumerate(others, 1)]
        return [f"{out.type} x{f' = to[{to}]' if read else ''};", *places, *statements, f"to[{to}] = x;"]

    return lines + loops(out.like.shape, [x.like.stride() for x in operands], body)


_LINE = 64  # bytes of a line of the cache
_TURNS = ("squeeze", "unsqueeze", "t", "transpose")
"""Operations in place that only look at a value in another way."""
_ADDED = ("addmm",)
"""Operations in place that go row by row."""


def _name(node: Node) -> str:
    name: str = node.target._schema.name.split("::")[1]  # type: ignore[union-attr]
    return name[:-1] if _writes(node) else name


def _goes(node: Node) -> bool:
    """It is done number by number or row by row."""
    if node.target is SCAN:
        return False
    if _name(node) in _ADDED:
        return _writes(node)
    return _name(node) in POINTWISE


def _writes(node: Node) -> bool:
    """It writes over its first argument."""
    if node.target is SCAN:
        return False
    returns = node.target._schema.returns  # type: ignore[union-attr]
    return any(value.alias_info is not None and value.alias_info.is_write for value in returns)


def _gathered(nodes: list[Node], values: dict[Node, Any], kept: set[Place]) -> list[Node]:
    """The nodes with the updates of a carry beside each other, at the last of them, where nothing between minds."""
    order, writers = list(nodes), dict[Place, list[Node]]()
    for node in nodes:
        if node.target is not SCAN and _writes(node) and values[node].place in kept:
            writers.setdefault(values[node].place, []).append(node)
    for place, some in writers.items():
        for node in reversed(some[:-1]):
            start = order.index(node)
            end = next(i for i in range(start + 1, len(order)) if order[i] in some)
            read = _read(node, values)
            between = order[start + 1 : end]
            if not any(place in _read(n, values) or (_writes(n) and values[n].place in read) for n in between):
                order[start:end] = [*between, node]
    return order


def _read(node: Node, values: dict[Node, Any]) -> set[Place]:
    return {values[x].place for x in node.all_input_nodes if isinstance(values[x], Value)}


def _like(x: Tensor) -> Tensor:
    if x.dtype not in TYPES or not x.numel():
        raise Uncompiled(f"{x.dtype} {list(x.shape)}")
    return torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device="meta")


def _storage(x: Any) -> int:
    x = x[0] if isinstance(x, list | tuple) else x
    return int(x.untyped_storage()._cdata)


def _each(make: Any, like: Any) -> Any:
    return [make(x) for x in like] if isinstance(like, list | tuple) else make(like)


def _extent(like: Tensor) -> int:
    return 1 + sum((n - 1) * s for n, s in zip(like.shape, like.stride(), strict=True))
