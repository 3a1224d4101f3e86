"""A graph of one client's step as a C program, which makes the steps of many clients, one client after the other.

So the weights of a client stay in a core's cache through all its steps, and nothing stands between two operations.
Consecutive operations in place are one loop, and a weight meets all that is added to it row by row.
"""

from __future__ import annotations

import ctypes
import operator
from collections.abc import Sequence
from importlib.resources import files
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.fx import GraphModule, Node
from torch.fx.node import map_arg

from weft.compiled import product
from weft.compiled.compiler import compiled, function
from weft.compiled.loops import Place, Value, loops, pointer
from weft.compiled.operations import TYPES, Uncompiled, expression
from weft.compiled.whole import WHOLE, copied

Calls = list[tuple[str, dict[str, Any]]]
"""Operations, and their arguments by name."""


class Program:
    """Steps of many clients."""

    def __init__(self, text: str, own: int, constants: list[Tensor], stacked: Sequence[bool]) -> None:
        """Compile.

        Args:
            text: the C text.
            own: bytes that it needs for itself.
            constants: its last inputs.
            stacked: which of the others have a part for each client.
        """
        library = compiled(text, torch.backends.cpu.get_cpu_capability() == "AVX512")
        self._run = function(library, "steps", ctypes.c_long, ctypes.c_long, *[ctypes.c_void_p] * 5)
        self._library, self._own, self._constants, self._stacked = library, own, constants, tuple(stacked)

    def __call__(self, inputs: Sequence[Tensor], rows: Tensor, real: np.ndarray[Any, np.dtype[np.bool_]]) -> None:
        """Write the carries after the last step over those before the first.

        Args:
            inputs: the carry, which is stacked, and what is given, which may be; each contiguous.
            rows: int64 [clients, steps, batch], -1 = padding.
            real: [clients, steps], which steps there are.
        """
        own = torch.empty(self._own, dtype=torch.uint8)
        tensors = [*inputs, *self._constants]
        apart = [x.stride(0) * x.itemsize if s else 0 for x, s in zip(inputs, self._stacked, strict=True)]
        starts = (ctypes.c_void_p * len(tensors))(*(x.data_ptr() for x in tensors))
        strides = (ctypes.c_long * len(tensors))(*apart, *[0] * len(self._constants))
        rows, real = rows.contiguous(), np.ascontiguousarray(real)
        self._run(*real.shape, rows.data_ptr(), real.ctypes.data, starts, strides, own.data_ptr())


def written(graph: GraphModule, sample: Sequence[Tensor], stacked: Sequence[bool], carry: int) -> Program:
    """The program of a step.

    Args:
        graph: one client's step: takes the carry, which it may overwrite, what is given, the rows of a batch and its
            number, and returns the new carry.
        sample: what it takes.
        stacked: which of all but the last two have a part for each client.
        carry: how many of them are the carry.

    Raises:
        Uncompiled: an operation has no C here, there is no compiler, or it does not take the text.
    """
    work = _Work(graph, sample, carry)
    lines = work.lines()
    inputs = [f"char *in{i} = tensors[{i}] + client * apart[{i}];" for i in range(len(stacked))]
    inputs += [f"char *constant{i} = tensors[{len(stacked) + i}];" for i in range(len(work.constants))]
    products = files("weft.compiled").joinpath("products.h").read_text(encoding="utf-8")
    text = _TEXT.format(
        most=product.MOST,
        products=f"#define REAL float\n{products}\n#undef REAL\n#define REAL double\n{products}",
        inputs="\n".join(inputs),
        batch=sample[-2].numel(),
        step="\n".join(lines),
    )
    return Program(text, work.own, work.constants, stacked)


_TEXT = """
#include <math.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>
#define INLINE static inline __attribute__((always_inline))
#define UNROLLED _Pragma("GCC unroll 16")
#define MOST {most}
{products}

void steps(long clients, long steps, const int64_t *rows, const bool *real, char *const *tensors, const long *apart,
           char *own) {{
    for (long client = 0; client < clients; client++) {{
        {inputs}
        for (int64_t step = 0; step < steps; step++) {{
            if (!real[client * steps + step]) continue;
            char *batch = (char *)(rows + (client * steps + step) * {batch}), *number = (char *)&step;
            {step}
        }}
    }}
}}
"""


class _Work:
    """The nodes of a graph in groups that are one piece of C each, and where their values lie."""

    def __init__(self, module: GraphModule, sample: Sequence[Tensor], carry: int) -> None:
        self.constants: list[Tensor] = []
        self.values: dict[Node, Any] = {}
        self.results: list[tuple[Value, Value]] = []  # (new, where the old one lies)
        names = [*(f"in{i}" for i in range(len(sample) - 2)), "batch", "number"]
        places = [Value(Place(name), _like(x)) for name, x in zip(names, sample, strict=True)]
        nodes, given = list[Node](), iter(places)
        for node in module.graph.nodes:
            if node.op == "placeholder":
                self.values[node] = next(given)
            elif node.op == "get_attr":
                self.constants.append(getattr(module, str(node.target)).contiguous())
                self.values[node] = Value(Place(f"constant{len(self.constants) - 1}"), _like(self.constants[-1]))
            elif node.op == "output":
                self.results = list(zip((self.values[n] for n in node.args[0]), places[:carry], strict=True))
            elif self._valued(node):
                nodes.append(node)
        self.groups = self._grouped(_gathered(nodes, self))
        self.own = self._laid()

    def _valued(self, node: Node) -> bool:
        """Find the value of a node, and whether something has to run for it."""
        if node.target is operator.getitem:
            self.values[node] = self.values[node.args[0]][node.args[1]]  # type: ignore[index]
            return False
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
        self.values[node] = Value(Place(size=_extent(like) * like.itemsize), like)
        return True

    def _grouped(self, nodes: list[Node]) -> list[list[Node]]:
        """Consecutive nodes that write over the same value, number by number or row by row."""
        groups: list[list[Node]] = []
        for node in nodes:
            joins = (
                groups
                and _writes(node)
                and all(_goes(n) for n in (node, groups[-1][-1]))
                and self.values[node].same(self.values[groups[-1][-1]])
            )
            groups[-1].append(node) if joins else groups.append([node])
        return groups

    def _laid(self) -> int:
        """Give each value a place in the program's own memory while it is used; how large that is."""
        places: dict[Place, None] = {}  # in the order in which they are written
        for i, group in enumerate([*self.groups, None]):
            nodes = [x for node in group for x in (node, *node.all_input_nodes)] if group else []
            values = [self.values[x] for x in nodes] if group else [new for new, _ in self.results]
            for value in values:
                if isinstance(value, Value) and not value.place.base:
                    value.place.first = value.place.first if value.place in places else i
                    value.place.last, places[value.place] = i, None
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

    def lines(self) -> list[str]:
        """The C text of a step."""
        found = []
        for group in self.groups:
            found += ["{", *self._group(group), "}"]
        for new, old in self.results:
            if not new.same(old):
                if new.place.base:
                    raise Uncompiled("a result is an input of another place")
                found += ["{", *copied(old, new), "}"]
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
    if _name(node) in _ADDED:
        return _writes(node)
    return _name(node) not in WHOLE


def _writes(node: Node) -> bool:
    """It writes over its first argument."""
    returns = node.target._schema.returns  # type: ignore[union-attr]
    return any(value.alias_info is not None and value.alias_info.is_write for value in returns)


def _gathered(nodes: list[Node], work: _Work) -> list[Node]:
    """The nodes with the updates of an input beside each other, at the last of them, where nothing between minds."""
    order = list(nodes)
    writers: dict[Place, list[Node]] = {}
    for node in nodes:
        if _writes(node) and work.values[node].place.base:
            writers.setdefault(work.values[node].place, []).append(node)
    for place, some in writers.items():
        for node in reversed(some[:-1]):
            start = order.index(node)
            end = next(i for i in range(start + 1, len(order)) if order[i] in some)
            read = {work.values[x].place for x in node.all_input_nodes}
            between = order[start + 1 : end]
            if all(
                place not in {work.values[x].place for x in n.all_input_nodes}
                and not (_writes(n) and work.values[n].place in read)
                for n in between
            ):
                order[start:end] = [*between, node]
    return order


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
