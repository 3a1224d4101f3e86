"""A step as a flat graph of tensor operations, with what tracing leaves behind taken out.

All that is done here keeps the numbers but for rounding: repeated and empty operations go, what depends on shapes only
becomes a constant, and the update of a carried tensor is made in place, together with the matrix product that gave its
gradient where there is one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._guards import TracingContext, tracing
from torch._subclasses import FakeTensorMode
from torch.fx import Graph, GraphModule, Node
from torch.fx.experimental.proxy_tensor import make_fx

from weft.local import grouped, images, products, softmax
from weft.local.capture import captured
from weft.local.reuse import reuse
from weft.local.script import Fold, scripted

aten = torch.ops.aten

Flat = Callable[..., Sequence[Tensor]]
"""Tensors -> tensors."""


def fold(step: Flat) -> Fold:
    """A step over consecutive batches; `step`: (*carry, *what stays as it is, a batch, its number) -> the new carry."""

    def run(
        carry: list[Tensor], given: list[Tensor], batches: Tensor, numbers: Tensor, first: int, last: int
    ) -> list[Tensor]:
        for t in range(first, last):
            carry = list(step(*carry, *given, batches[t], numbers[t]))
        return carry

    return run


def traced(function: Flat, inputs: Sequence[Tensor], carry: int) -> Fold:
    """The function as a graph for inputs of these shapes, over consecutive batches.

    Args:
        function: takes all `inputs`; returns new values of the first `carry` of them.
        inputs: the carry, which the graph may overwrite whenever it runs, then what stays as it is, a batch and its
            number.
        carry: how many of the inputs are the carry.

    Returns:
        Fold: gives the new carry, in part in the tensors of the old one. Results never share memory.
    """
    step = shortened(function, inputs, carry)
    if inputs[0].device.type != "cpu":
        run = _plain(step)
        return captured(step.forward, run) if inputs[0].device.type == "cuda" else run
    if not (kernels := images.kernels(step.graph, carry)):
        return scripted(step, carry) or _plain(step)
    step = shortened(function, images.turned(inputs, kernels), carry)
    run = scripted(step, carry) or _plain(step)

    def turning(state: list[Tensor], *given: Any) -> list[Tensor]:
        return [x.contiguous() for x in run(images.turned(state, kernels), *given)]

    return turning


def _plain(module: GraphModule) -> Fold:
    """Run by Python, which has two doors to an operation: by the quicker one."""
    for node in module.graph.nodes:
        node.target = _FAST.get(node.target, node.target)
    module.recompile()
    return fold(module.forward)


def shortened(
    function: Flat, inputs: Sequence[Tensor], carry: int, ways: Mapping[Any, Any] | None = None
) -> GraphModule:
    """The graph that `traced` runs; without a carry, nothing is overwritten, and results may be what came in.

    `ways`: what operations are traced to, in place of what suits torch on the device.
    """
    on_cpu = inputs[0].device.type == "cpu"
    with tracing(TracingContext(FakeTensorMode(allow_fallback_kernels=True))):  # make_fx would make one for each node
        module = make_fx(function, ways or (_ON_CPU if on_cpu else grouped.WAYS))(*inputs)
    graph = module.graph
    _simplify(module)
    if on_cpu and not ways:
        images.pool_first(graph)
        products.few_rows(graph)
        _simplify(module)
    if carry:
        _own_results(graph, carry)
        _update_in_place(graph, carry)
    graph.eliminate_dead_code(is_impure_node=lambda n: n.op in ("placeholder", "output") or _writes(n))
    reuse(graph)
    graph.lint()
    module.recompile()
    return module


_ON_CPU = images.WAYS | products.WAYS | softmax.WAYS
_DETOURS = (aten.detach.default, aten.alias.default, aten.lift_fresh.default)
_RESHAPES = (aten.view.default, aten._unsafe_view.default, aten.reshape.default, aten.expand.default)
_VIEWS = (*_RESHAPES, *_DETOURS, aten.transpose.int, aten.unsqueeze.default, aten.squeeze.dim, aten.squeeze.dims,
          aten.permute.default, aten.slice.Tensor, aten.select.int, aten.t.default)  # fmt: skip
_LIKES = (aten.ones_like.default, aten.zeros_like.default, aten.full_like.default, aten.new_zeros.default,
          aten.new_ones.default, aten.new_full.default)  # fmt: skip


def _shape(node: Any) -> tuple[int, ...]:
    value = node.meta.get("val") if isinstance(node, Node) else None
    return tuple(value.shape) if isinstance(value, Tensor) else ()


def _simplify(module: GraphModule) -> None:
    """Take out detours, repetitions, and what is known before the graph runs."""
    graph, seen = module.graph, dict[Any, Node]()
    for node in list(graph.nodes):
        if node.op != "call_function":
            continue
        shorter = _shorter(node)
        if shorter is None:
            shorter = _constant(module, node) if _is_constant(node) else _by_a_number(module, node, seen)
        if shorter is None:
            key = (node.target, _frozen(node.args), _frozen(tuple(sorted(node.kwargs.items()))))
            shorter = seen.setdefault(key, node)
        if shorter is not node:
            node.replace_all_uses_with(shorter)
            graph.erase_node(node)
    graph.eliminate_dead_code()


def _shorter(node: Node) -> Node | None:
    """An earlier node with the same value."""
    target, args = node.target, node.args
    source = args[0] if args else None
    if not isinstance(source, Node):
        return None
    if target in _DETOURS:
        return source
    if target in _RESHAPES and "val" in source.meta and _shape(node) == _shape(source):
        return source
    if target is aten.t.default and source.target is aten.t.default:
        return source.args[0]  # type: ignore[return-value]
    if target is aten.transpose.int and source.target is aten.transpose.int:
        axes = {i % len(_shape(node)) for i in args[1:]}  # type: ignore[operator]
        if axes == {i % len(_shape(node)) for i in source.args[1:]}:  # type: ignore[operator]
            return source.args[0]  # type: ignore[return-value]
    if target in (aten.mul.Tensor, aten.pow.Tensor_Scalar) and args[1] == 1 and _same_type(node, source):
        return source  # the slope of a square is a power of 1
    return None


def _by_a_number(module: GraphModule, node: Node, seen: dict[Any, Node]) -> Node | None:
    """The node as the product of a tensor and one number, if it is one, so that products of products become one."""
    found = _tensor_and_number(module, node)
    if found is None or not found[0].meta["val"].is_floating_point() or not _same_type(node, found[0]):
        return None
    tensor, number = found
    if tensor.target is aten.mul.Scalar:
        tensor, number = tensor.args[0], number * tensor.args[1]
    if number == 1:
        return tensor  # type: ignore[no-any-return]
    key = (aten.mul.Scalar, tensor, number)
    if key not in seen:
        with module.graph.inserting_before(node):
            seen[key] = module.graph.call_function(aten.mul.Scalar, (tensor, number))
        seen[key].meta["val"] = node.meta["val"]
    return seen[key]


def _tensor_and_number(module: GraphModule, node: Node) -> tuple[Any, float] | None:
    """Whose product a node is; a stored tensor of equal numbers counts as a number."""
    if node.target is aten.add.Tensor and not node.kwargs and node.args[0] is node.args[1]:
        return node.args[0], 2.0
    if node.target is aten.mul.Scalar:
        return node.args[0], float(node.args[1])  # type: ignore[arg-type]
    if node.target is aten.mul.Tensor:
        for one, other in (node.args[:2], node.args[1::-1]):
            if isinstance(one, Node) and one.op == "get_attr" and _shape(one) and _shape(other) == _shape(node):
                stored = getattr(module, str(one.target)).flatten()
                if bool((stored == stored[0]).all()):
                    return other, float(stored[0])
    return None


def _same_type(node: Node, other: Node) -> bool:
    return "val" in other.meta and node.meta["val"].dtype == other.meta["val"].dtype


def _is_constant(node: Node) -> bool:
    if node.target in _LIKES:
        return True
    inputs = node.all_input_nodes
    made = torch.Tag.nondeterministic_seeded not in getattr(node.target, "tags", ())
    return made and isinstance(node.meta.get("val"), Tensor) and all(n.op == "get_attr" for n in inputs)


def _constant(module: GraphModule, node: Node) -> Node:
    """A stored tensor in the place of a node that is the same at every step."""

    def value(x: Any) -> Any:
        if not isinstance(x, Node):
            return x
        if x.op == "get_attr":
            return getattr(module, str(x.target))
        like = x.meta["val"]
        return torch.empty(like.shape, dtype=like.dtype, device=like.device)

    found = node.target(*torch.fx.node.map_arg(node.args, value), **torch.fx.node.map_arg(node.kwargs, value))  # type: ignore[operator]
    name = f"_constant_{len([n for n in module.graph.nodes if n.op == 'get_attr'])}_{node.name}"
    module.register_buffer(name, found.contiguous(), persistent=False)
    with module.graph.inserting_before(node):
        stored = module.graph.get_attr(name)
    stored.meta["val"] = node.meta["val"]
    return stored


def _frozen(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return (type(value), *(_frozen(v) for v in value))
    return (type(value), value)


def _source(node: Any) -> Any:
    """The tensor whose memory a view shows."""
    while isinstance(node, Node) and node.op == "call_function" and node.target in _VIEWS:
        node = node.args[0]
    return node


def _writes(node: Node) -> bool:
    return node.op == "call_function" and node.target in _IN_PLACE


def _own_results(graph: Graph, carry: int) -> None:
    """Copy results that would share memory with each other, with an input of another place or with a constant."""
    inputs = [n for n in graph.nodes if n.op == "placeholder"]
    output = next(n for n in graph.nodes if n.op == "output")
    taken, results = set[Node](), []
    for i, result in enumerate(output.args[0]):
        source = _source(result)
        borrowed = source.op != "call_function" and not (result is inputs[i] and i < carry)
        if borrowed or source in taken:
            with graph.inserting_before(output):
                result = graph.call_function(aten.clone.default, (result,))
        taken.add(source)
        results.append(result)
    output.args = (results,)


_IN_PLACE = (aten.baddbmm_.default, aten.addmm_.default, aten.addcmul_.default, aten.add_.Tensor, aten.mul_.Tensor,
             aten.lerp_.Tensor)  # fmt: skip


def _update_in_place(graph: Graph, carry: int) -> None:
    """Overwrite carried tensors whose new value is the old one plus something, once all who read them have run."""
    inputs = [n for n in graph.nodes if n.op == "placeholder"][:carry]
    output = next(n for n in graph.nodes if n.op == "output")
    results = list(output.args[0])
    changing = {old for old, new in zip(inputs, results, strict=True) if old is not new}
    for i, (old, new) in enumerate(zip(inputs, results, strict=True)):
        if new.target is not aten.add.Tensor or new.kwargs or _shape(new) != _shape(old) or len(new.users) > 1:
            continue
        first, second = new.args
        if second is old:
            first, second = second, first
        kept = first if first is old else None
        if kept is None and isinstance(first, Node) and _is_scaled(first, old):
            kept = first
        if kept is None or not isinstance(second, Node) or not _same_type(second, old) or not _same_type(new, old):
            continue
        with graph.inserting_before(output):
            target = old
            if kept is not old:
                target = graph.call_function(aten.mul_.Tensor, (old, kept.args[1]))
            results[i] = _added(graph, target, second, changing)
            results[i].meta = dict(new.meta)
    output.args = (results,)


def _is_scaled(node: Node, old: Node) -> bool:
    """It is the old value times a number, and nothing else uses it."""
    return (
        node.target in (aten.mul.Tensor, aten.mul.Scalar)
        and node.args[0] is old
        and not isinstance(node.args[1], Node)
        and len(node.users) == 1
    )


def _added(graph: Graph, old: Node, change: Any, changing: set[Node]) -> Node:
    """`old` plus `change` in place, in as few passes over memory as it takes."""
    scaled = change.target is aten.mul.Tensor and len(change.users) == 1
    if not scaled or not all(isinstance(a, Node) and "val" in a.meta for a in change.args):
        return graph.call_function(aten.add_.Tensor, (old, _as_it_was(graph, change, changing)))
    factor: Any
    factor, by = change.args if _shape(change.args[0]) == _shape(change) else reversed(change.args)
    return _scaled_added(graph, old, factor, _as_it_was(graph, by, changing), changing)


def _terms(node: Any) -> list[Any]:
    """What a node is the sum of."""
    is_sum = node.target is aten.add.Tensor and len(node.users) == 1 and not node.kwargs
    if not is_sum or not all(isinstance(a, Node) and _shape(a) == _shape(node) for a in node.args):
        return [node]
    return [term for a in node.args for term in _terms(a)]


def _scaled_added(graph: Graph, old: Node, factor: Any, by: Any, changing: set[Node], number: float = 1.0) -> Node:
    """`old` plus `number` times `factor` times `by` in place; a sum term by term, so that products are found in it."""
    terms = _terms(factor)
    if len(terms) > 1:
        for term in sorted(dict.fromkeys(terms), key=lambda term: _distance(term, old) is None):
            old = _scaled_added(graph, old, term, by, changing, terms.count(term))
        return old
    if found := _distance(factor, old):
        to, times = found
        pull = graph.call_function(aten.mul.Scalar, (by, -number * times))
        return graph.call_function(aten.lerp_.Tensor, (old, _as_it_was(graph, to, changing), pull))
    turned = factor.target in _TURNS and len(factor.users) == 1
    product = factor.args[0] if turned else factor
    add = _PRODUCTS.get(getattr(product, "target", None))
    if (
        add is None
        or len(product.users) > 1
        or any(size != 1 for size in _shape(by)[len(_shape(product)) - 2 :])
        or len(_shape(by)) not in (0, len(_shape(product)))
        or any(_source(a) in changing for a in product.args)
        or number != 1
    ):
        if factor.target is aten.mul.Scalar and len(factor.users) == 1:
            factor, number = factor.args[0], number * float(factor.args[1])
        value: dict[str, Any] = {} if number == 1 else {"value": number}
        return graph.call_function(aten.addcmul_.default, (old, _as_it_was(graph, factor, changing), by), value)
    a, b = product.args
    if a.meta["val"].numel() <= b.meta["val"].numel():
        a = graph.call_function(aten.mul.Tensor, (a, by))
    else:
        b = graph.call_function(aten.mul.Tensor, (b, by))
    if turned:
        a, b = (graph.call_function(aten.transpose.int, (x, -1, -2)) for x in (b, a))
    return graph.call_function(add, (old, a, b))


def _distance(node: Any, old: Node) -> tuple[Node, float] | None:
    """(`to`, `times`) if the node is the distance `old - to` so many times, as in a proximal term."""
    times = 1.0
    while node.target is aten.mul.Scalar and len(node.users) == 1:
        node, times = node.args[0], times * float(node.args[1])
    if node.target is not aten.sub.Tensor or node.args[0] is not old or len(node.users) > 1 or node.kwargs:
        return None
    to = node.args[1]
    return (to, times) if isinstance(to, Node) and _same_type(to, old) and _shape(node) == _shape(old) else None


def _as_it_was(graph: Graph, node: Node, changing: set[Node]) -> Node:
    """The node; a copy of it, made before the first update, if it shows memory that is overwritten."""
    if _source(node) not in changing:
        return node
    last = node if node.op != "placeholder" else [n for n in graph.nodes if n.op == "placeholder"][-1]
    with graph.inserting_after(last):
        copy = graph.call_function(aten.clone.default, (node,))
    copy.meta = dict(node.meta)
    return copy


_TURNS = (aten.transpose.int, aten.t.default)
_PRODUCTS: dict[Any, Any] = {aten.bmm.default: aten.baddbmm_.default, aten.mm.default: aten.addmm_.default}


_FAST: dict[Any, Any] = {
    aten.add.Tensor: torch.add,
    aten.sub.Tensor: torch.sub,
    aten.mul.Tensor: torch.mul,
    aten.mul.Scalar: torch.mul,
    aten.div.Tensor: torch.div,
    aten.bmm.default: torch.bmm,
    aten.mm.default: torch.mm,
    aten.addmm.default: torch.addmm,
    aten.t.default: torch.t,
    aten.transpose.int: torch.transpose,
    aten.view.default: torch.Tensor.view,
    aten._unsafe_view.default: torch.Tensor.view,
    aten.expand.default: torch.Tensor.expand,
    aten.unsqueeze.default: torch.unsqueeze,
    aten.relu.default: torch.relu,
    aten.neg.default: torch.neg,
    aten.gather.default: torch.gather,
    aten.clamp.default: torch.clamp,
    aten.sum.dim_IntList: torch.sum,
    aten.where.self: torch.where,
    aten.permute.default: torch.permute,
    aten.squeeze.dims: torch.squeeze,
    aten._log_softmax.default: torch._log_softmax,
}
