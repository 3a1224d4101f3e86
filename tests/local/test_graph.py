"""A step as a graph: the same numbers over many steps, whatever is read, returned or shared."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import grad, vmap

from weft.local import graph
from weft.local.graph import shortened
from weft.local.script import scripted

K, B, D = 3, 4, 5
Step = Callable[..., Sequence[Tensor]]


def numbers(*shape: int) -> Tensor:
    return torch.randn(
        shape, generator=torch.Generator().manual_seed(len(shape) * 100 + shape[-1]), dtype=torch.float64
    )


W, V, B1, X, RATE = numbers(K, D, D), numbers(K, D, D) * 0.3, numbers(K, D), numbers(K, B, D), numbers(K) * 0.1


def linear(w: Tensor, b: Tensor, x: Tensor, rate: Tensor) -> Sequence[Tensor]:
    """One SGD step on a linear layer, whose gradient is a matrix product."""
    dw, db = grad(lambda p: torch.tanh(F.linear(x, p[0], p[1])).square().mean())((w, b))
    return w + -0.1 * rate * dw, b + -0.1 * rate * db


def momentum(w: Tensor, m: Tensor, x: Tensor, rate: Tensor) -> Sequence[Tensor]:
    m = 0.9 * m + grad(lambda w: F.linear(x, w).square().mean())(w) + 0.01 * w
    return w + rate * m, m


def sums(w: Tensor, v: Tensor, x: Tensor, rate: Tensor) -> Sequence[Tensor]:
    """Gradients that are a product and further terms, one of them with the weight itself."""
    dw = grad(lambda w: torch.tanh(F.linear(x, w)).square().mean())(w)
    return w + -rate * (dw + v + 0.1 * (w - v)), v + rate * (v + w)


def two_layers(w: Tensor, v: Tensor, x: Tensor, rate: Tensor) -> Sequence[Tensor]:
    """The gradient of each weight is a product with the other, which is overwritten in the same step."""
    dw, dv = grad(lambda p: (p[0] @ p[1] - 1).square().mean())((w, v))
    return w + rate * dw, v + rate * dv


def coupled(w: Tensor, v: Tensor, x: Tensor, rate: Tensor) -> Sequence[Tensor]:
    """Each is read by the update of the other."""
    return w + rate * v.T, v + w


def swapped(w: Tensor, v: Tensor, x: Tensor, rate: Tensor) -> Sequence[Tensor]:
    return v, w + rate * v


def handed_on(w: Tensor, v: Tensor, x: Tensor, rate: Tensor) -> Sequence[Tensor]:
    """The old value of what is overwritten is a result too."""
    return v, v + rate * w


def handed_on_turned(w: Tensor, v: Tensor, x: Tensor, rate: Tensor) -> Sequence[Tensor]:
    return v.T, v + rate * w


def doubled(w: Tensor, v: Tensor, x: Tensor, rate: Tensor) -> Sequence[Tensor]:
    new = w + rate * v
    return new, new


def turned(w: Tensor, v: Tensor, x: Tensor, rate: Tensor) -> Sequence[Tensor]:
    """A result that is a view of an input, and one that is an input as it was."""
    return w.T, v


def constant(w: Tensor, v: Tensor, x: Tensor, rate: Tensor) -> Sequence[Tensor]:
    return w * 0.5 + torch.ones_like(w), torch.full_like(v, 2.0)


def masked(w: Tensor, v: Tensor, x: Tensor, rate: Tensor) -> Sequence[Tensor]:
    return torch.where(rate > 0, w + rate * v, w), v + rate * w


def traced(step: Step, inputs: Sequence[Tensor], carry: int) -> Step:
    """As one step that knows neither batch nor number."""
    none, zero = torch.zeros(1, 1), torch.zeros(1, dtype=torch.int64)
    fold = graph.traced(lambda *x: step(*x[:-2]), [*inputs, none[0], zero[0]], carry)
    return lambda *x: fold(list(x[:carry]), list(x[carry:]), none, zero, 0, 1)


CASES = [
    (linear, (W, B1)),
    *(
        (f, (W, V))
        for f in (
            momentum,
            sums,
            two_layers,
            coupled,
            swapped,
            handed_on,
            handed_on_turned,
            doubled,
            turned,
            constant,
            masked,
        )
    ),
]


@pytest.mark.parametrize(("step", "carry"), CASES, ids=[c[0].__name__ for c in CASES])
@pytest.mark.parametrize("stacked", [True, False], ids=["stacked", "alone"])
def test_many_steps_give_the_same(step: Step, carry: tuple[Tensor, ...], stacked: bool) -> None:
    plain: Step = vmap(step) if stacked else step
    inputs = [t if stacked else t[0] for t in (*carry, X, RATE)]
    state = [t.clone() for t in inputs[:2]]
    run = traced(plain, [t.clone() for t in inputs], 2)
    fixed = [t.clone() for t in inputs[2:]]
    for _ in range(4):
        expected = plain(*state, *inputs[2:])
        state = list(run(*[t.clone() for t in state], *fixed))
        for got, want in zip(state, expected, strict=True):
            torch.testing.assert_close(got, want, rtol=0, atol=1e-12)
    assert all(torch.equal(a, b) for a, b in zip(fixed, inputs[2:], strict=True)), "what is given was overwritten"


@pytest.mark.parametrize(("step", "carry"), CASES, ids=[c[0].__name__ for c in CASES])
def test_steps_may_follow_each_other_in_the_same_memory(step: Step, carry: tuple[Tensor, ...]) -> None:
    plain: Step = vmap(step)
    run = traced(plain, [t.clone() for t in (*carry, X, RATE)], 2)
    expected, state = list(carry), [t.clone() for t in carry]
    for _ in range(4):
        expected, state = list(plain(*expected, X, RATE)), list(run(*state, X, RATE))
    for got, want in zip(state, expected, strict=True):
        torch.testing.assert_close(got, want, rtol=0, atol=1e-12)


def test_the_update_of_a_layer_is_one_operation_in_place() -> None:
    """Otherwise a step makes five passes over memory where one will do."""
    w, b = W.clone(), B1.clone()
    code = shortened(vmap(linear), [w, b, X, RATE], 2).code
    assert "baddbmm_" in code and "addcmul_" in code
    assert traced(vmap(linear), [w, b, X, RATE], 2)(w, b, X, RATE)[0].data_ptr() == w.data_ptr()


def test_it_has_the_bits_of_the_graph_that_python_runs() -> None:
    """So that results do not depend on whether TorchScript is there."""
    inputs = [t.float() for t in (W, V, X, RATE)]
    quick, plain = traced(vmap(momentum), inputs, 2), shortened(vmap(momentum), inputs, 2).forward
    a, b = [t.clone() for t in inputs[:2]], [t.clone() for t in inputs[:2]]
    for _ in range(5):
        a, b = list(quick(*a, *inputs[2:])), list(plain(*b, *inputs[2:]))
        assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


class Look(NamedTuple):
    """A convolution and the pooling behind it."""

    channels: int
    kernel: int
    how: dict[str, Any]
    pool: dict[str, Any]


LOOKS = {
    "few channels": Look(3, 3, {}, {"kernel_size": 2}),
    "few channels, padded": Look(1, 5, {"padding": 2}, {"kernel_size": 2}),
    "few channels, in strides": Look(2, 3, {"stride": 2, "padding": (1, 0)}, {"kernel_size": 2}),
    "few channels, with holes": Look(3, 2, {"dilation": (2, 3)}, {"kernel_size": 3, "stride": 1}),
    "many channels": Look(7, 3, {"padding": 1}, {"kernel_size": 2}),
    "windows that overlap": Look(6, 3, {}, {"kernel_size": 3, "stride": 2, "padding": 1}),
    "groups": Look(8, 3, {"groups": 4}, {"kernel_size": 2}),
}


def looking(like: Look, bias: bool, dtype: torch.dtype) -> tuple[Step, list[Tensor]]:
    """(a step on two convolutions and a head, their weights and the rate).

    Images are made of squares of one colour, so that a pooling meets equal numbers.
    """
    images = numbers(4, like.channels, 3, 3).repeat_interleave(4, 2).repeat_interleave(4, 3).to(dtype)
    own = like.channels // like.how.get("groups", 1)
    kernels = [numbers(4, own, like.kernel, like.kernel).to(dtype), numbers(5, 4, 2, 2).to(dtype) * 0.3]
    biases = [numbers(4).to(dtype), numbers(5).to(dtype)] if bias else []

    def seen(p: Sequence[Tensor]) -> Tensor:
        first, second = p[2:4] if bias else (None, None)
        x = F.max_pool2d(torch.relu(F.conv2d(images, p[0], first, **like.how)), **like.pool)
        return torch.relu(F.conv2d(x, p[1], second)).flatten(1)

    def step(*given: Tensor) -> Sequence[Tensor]:
        weights, rate = given[:-1], given[-1]
        slopes = grad(lambda p: F.linear(seen(p), p[-1]).square().mean())(weights)
        return tuple(w - rate * slope for w, slope in zip(weights, slopes, strict=True))

    weights = [*kernels, *biases]
    head = numbers(3, seen(weights).shape[1]).to(dtype) * 0.1
    return step, [*weights, head, torch.tensor(0.01, dtype=dtype)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("name", LOOKS)
def test_images(name: str, bias: bool, dtype: torch.dtype) -> None:
    """Convolutions and poolings, which become other operations."""
    step, (*expected, rate) = looking(LOOKS[name], bias, dtype)
    state = [w.clone() for w in expected]
    run = traced(step, [*(w.clone() for w in expected), rate], len(state))
    for _ in range(3):
        expected, state = list(step(*expected, rate)), list(run(*state, rate))
        for got, want in zip(state, expected, strict=True):
            torch.testing.assert_close(got, want, rtol=0, atol=1e-5 if dtype == torch.float32 else 1e-12)
            assert got.is_contiguous()


def test_a_step_on_images_runs_without_python() -> None:
    """Or two threads would wait for each other."""
    step, inputs = looking(LOOKS["many channels"], True, torch.float32)
    none = torch.zeros(1)
    graph_of = shortened(lambda *x: step(*x[:-2]), [*inputs, none, none], len(inputs) - 1)
    assert scripted(graph_of, len(inputs) - 1) is not None


def _risen(loss: Callable[[Tensor], Tensor], x: Tensor) -> list[Tensor]:
    return [x + grad(loss)(x)]


def test_a_pooling_comes_before_its_relu_if_nobody_else_looks_at_that() -> None:
    image, kernel = numbers(2, 6, 8, 8), numbers(4, 6, 3, 3)

    def alone(kernel: Tensor) -> Tensor:
        return F.max_pool2d(torch.relu(F.conv2d(image, kernel)), 2).square().sum()

    def shared(kernel: Tensor) -> Tensor:
        y = torch.relu(F.conv2d(image, kernel))
        return F.max_pool2d(y, 2).square().sum() + y.sum()

    for loss, first in ((alone, "max_pool2d"), (shared, "relu")):
        step = partial(_risen, loss)
        run = shortened(step, [kernel.clone()], 1)
        found = [n.name for n in run.graph.nodes if n.name.startswith(("max_pool2d_with_indices", "relu"))]
        assert found[0].startswith(first)
        torch.testing.assert_close(run(kernel.clone()), step(kernel), rtol=0, atol=1e-12)


@pytest.mark.parametrize("rows", [1, 8, 9, 32, 33])
def test_few_rows_meet_a_large_weight(rows: int) -> None:
    x, w, b, rate = numbers(rows, 512), numbers(513, 512), numbers(513), torch.tensor(0.1, dtype=torch.float64)
    weights, inputs = [w * 0.01, b], [x, rate]

    def step(w: Tensor, b: Tensor, x: Tensor, rate: Tensor) -> Sequence[Tensor]:
        dw, db = grad(lambda p: torch.tanh(F.linear(x, p[0], p[1])).square().mean())((w, b))
        return w + -rate * dw, b + -rate * db

    state = traced(step, [*(v.clone() for v in weights), *inputs], 2)(*(v.clone() for v in weights), *inputs)
    for got, want in zip(state, step(*weights, *inputs), strict=True):
        torch.testing.assert_close(got, want, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("rows", "first"), [(16, True), (32, True), (64, True), (15, False), (20, False), (80, False)])
def test_stacked_weights_stand_first_where_rows_fill_registers(rows: int, first: bool) -> None:
    w, x = numbers(3, 70, 60) * 0.1, numbers(3, rows, 60)

    def step(w: Tensor, x: Tensor) -> Sequence[Tensor]:
        return [w - 0.1 * grad(lambda w: torch.tanh(F.linear(x, w)).square().mean())(w)]

    found = shortened(vmap(step), [w.clone(), x], 1)
    product = found.graph.find_nodes(op="call_function", target=torch.ops.aten.bmm.default)[0]
    assert (product.args[0].op == "placeholder" and product.meta["val"].shape == (3, 70, rows)) is first
    torch.testing.assert_close(found(w.clone(), x)[0], vmap(step)(w, x)[0], rtol=0, atol=1e-12)


def test_a_weight_is_not_converted_for_few_rows() -> None:
    """Then its product is one of float32, to which that of 16 bits comes near."""
    x, w = numbers(16, 512).float(), numbers(520, 512).float() * 0.01

    def step(w: Tensor, x: Tensor) -> Sequence[Tensor]:
        def loss(w: Tensor) -> Tensor:
            with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
                return torch.tanh(F.linear(torch.tanh(F.linear(x, w)), w.T)).float().square().mean()

        return [w + -10.0 * grad(loss)(w)]

    run = shortened(step, [w.clone(), x], 1)
    sizes = [n.meta["val"].numel() for n in run.graph.nodes if n.target is torch.ops.aten._to_copy.default]
    assert sizes and max(sizes) < w.numel()
    change, want = run(w.clone(), x)[0] - w, step(w, x)[0] - w
    assert (change - want).norm() < 0.02 * want.norm() and want.norm() > 0.01 * w.norm()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("shape", "dim", "together"), [
    ((4, 50, 10), -1, True), ((200, 10), 1, True), ((200, 15), -1, True),
    ((200, 16), -1, False), ((4, 50, 10), 1, False), ((100, 10), 1, False), ((10,), 0, False),
])  # fmt: skip
def test_the_rows_of_few_classes_lie_side_by_side(
    shape: tuple[int, ...], dim: int, together: bool, dtype: torch.dtype
) -> None:
    def step(z: Tensor, share: Tensor) -> Sequence[Tensor]:
        return F.log_softmax(z, dim), grad(lambda z: (F.log_softmax(z, dim) * share).sum())(z)

    inputs = [numbers(*shape).to(dtype), numbers(*shape).square().to(dtype)]
    found = shortened(step, inputs, 2)
    nodes = [n for n in found.graph.nodes if "softmax" in str(n.target)]
    assert len(nodes) == 2 and all((n.meta["val"].shape == (shape[-1], 200)) is together for n in nodes)
    for new, plain in zip(found(*(x.clone() for x in inputs)), step(*inputs), strict=True):
        torch.testing.assert_close(new, plain, rtol=0, atol=1e-6 if dtype == torch.float32 else 1e-14)


@pytest.mark.parametrize("times", [1.0, 0.3])
@pytest.mark.parametrize("decay", [0.0, 0.01])
def test_a_proximal_term_is_one_pass(times: float, decay: float) -> None:
    """Its weight goes a part of the way to where the term pulls it; not if something has been done to it before."""
    w, b, anchor, x = numbers(4, 5), numbers(4), numbers(4, 5), numbers(3, 5)
    rate = torch.tensor(0.1, dtype=torch.float64)

    def step(w: Tensor, b: Tensor, anchor: Tensor, x: Tensor, rate: Tensor) -> Sequence[Tensor]:
        def loss(p: Sequence[Tensor]) -> Tensor:
            near = times / 2 * (p[0] - anchor).square().sum()
            return torch.tanh(F.linear(x, *p)).square().mean() + near + decay / 2 * p[0].square().sum()

        dw, db = grad(loss)((w, b))
        return w + -rate * dw, b + -rate * db

    given = [anchor, x, rate]
    run = shortened(step, [w.clone(), b.clone(), *given], 2)
    for got, want in zip(run(w.clone(), b.clone(), *given), step(w, b, *given), strict=True):
        torch.testing.assert_close(got, want, rtol=0, atol=1e-12)
    targets = {str(n.target) for n in run.graph.nodes if n.op == "call_function"}
    assert "aten.lerp_.Tensor" in targets and "aten.sub.Tensor" not in targets
    assert torch.equal(anchor, given[0]) and scripted(run, 2) is not None


def test_what_is_still_read_is_not_written_over() -> None:
    def step(w: Tensor, x: Tensor) -> Sequence[Tensor]:
        a = w * 2.0
        seen = a[1:]  # a view, which is read after its whole
        b = torch.relu(a)
        c = b * b.flip(0)
        d = (c + 1.0) * c.expand(2, *c.shape)
        return [w + d.sum(0) + torch.cat([seen, seen[:1]]), x - b]

    w, x = numbers(4, 4), numbers(4, 4)
    run = shortened(step, [w.clone(), x.clone()], 2)
    for got, want in zip(run(w.clone(), x.clone()), step(w, x), strict=True):
        torch.testing.assert_close(got, want, rtol=0, atol=1e-12)


def test_an_operand_that_nobody_needs_is_written_over() -> None:
    run = shortened(lambda x: [torch.exp(torch.relu(x * 2.0) + 1.0).sum(0, keepdim=True) + x], [numbers(4, 4)], 1)
    names = [n.name for n in run.graph.nodes if n.op == "call_function"]
    targets = [str(n.target) for n in run.graph.nodes if n.op == "call_function"]
    assert [t for t in targets if "_." in t][:3] == ["aten.relu_.default", "aten.add_.Tensor", "aten.exp_.default"], (
        names
    )


def test_what_is_compiled_goes_with_its_fold() -> None:
    """Nothing stays in the unit of the process, from which nothing is ever taken out."""
    unit = torch.jit._state._python_cu  # type: ignore[attr-defined]
    before = len(unit.get_functions())
    run = traced(vmap(linear), [t.clone() for t in (W, B1, X, RATE)], 2)
    assert torch.isfinite(run(W.clone(), B1.clone(), X, RATE)[0]).all()
    assert len(unit.get_functions()) == before
