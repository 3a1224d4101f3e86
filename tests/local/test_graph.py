"""A step as a graph: the same numbers over many steps, whatever is read, returned or shared."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import grad, vmap

from weft.local import graph
from weft.local.graph import shortened

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


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_images(dtype: torch.dtype) -> None:
    """Convolutions and poolings, which may be laid out anew."""
    kernel, image = numbers(6, 3, 3, 3).to(dtype), numbers(2, 3, 8, 8).to(dtype)
    head = numbers(10, 54).to(dtype) * 0.1

    def step(kernel: Tensor, head: Tensor, image: Tensor) -> Sequence[Tensor]:
        def loss(p: tuple[Tensor, Tensor]) -> Tensor:
            hidden = F.max_pool2d(torch.relu(F.conv2d(image, p[0])), 2)
            return F.linear(hidden.flatten(1), p[1]).square().mean()

        return tuple(p - 0.01 * g for p, g in zip((kernel, head), grad(loss)((kernel, head)), strict=True))

    run = traced(step, [kernel.clone(), head.clone(), image], 2)
    expected, state = [kernel, head], [kernel.clone(), head.clone()]
    for _ in range(3):
        expected, state = list(step(*expected, image)), list(run(*state, image))
    for got, want in zip(state, expected, strict=True):
        torch.testing.assert_close(got, want, rtol=0, atol=1e-5 if dtype == torch.float32 else 1e-12)


def test_what_is_compiled_goes_with_its_fold() -> None:
    """Nothing stays in the unit of the process, from which nothing is ever taken out."""
    unit = torch.jit._state._python_cu  # type: ignore[attr-defined]
    before = len(unit.get_functions())
    run = traced(vmap(linear), [t.clone() for t in (W, B1, X, RATE)], 2)
    assert torch.isfinite(run(W.clone(), B1.clone(), X, RATE)[0]).all()
    assert len(unit.get_functions()) == before
