"""Machine code gives what torch gives: each operation, products of all shapes, and steps that overwrite their carry."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as some
from tests.local.test_graph import CASES, RATE, Step, X, numbers
from torch import Tensor

from weft.compiled import WAYS, Program, Uncompiled, compiler, written
from weft.compiled.scan import noted
from weft.local.graph import shortened

pytestmark = pytest.mark.skipif(not compiler(), reason="no C compiler")
K = 3


def made(function: Callable[..., Sequence[Tensor]], inputs: Sequence[Tensor]) -> Program:
    """The program of a function of each of some stacked clients."""
    sample = [x[0] for x in inputs]
    return written(shortened(function, sample, 0, WAYS), [], sample, [True] * len(inputs))


def ran(function: Callable[..., Sequence[Tensor]], inputs: Sequence[Tensor]) -> list[Tensor]:
    """Its results; those of the first client by itself."""
    program = made(function, inputs)
    results = program.results(K)
    for first, many in ((0, 1), (1, K - 1)):
        program(inputs, results, first, many)
    return results


def stacked(function: Callable[..., Sequence[Tensor]], inputs: Sequence[Tensor]) -> list[Tensor]:
    return [torch.stack(parts) for parts in zip(*(function(*(x[k] for x in inputs)) for k in range(K)), strict=True)]


def several(function: Callable[..., Any]) -> Callable[..., Sequence[Tensor]]:
    """The same with its results in a list."""

    def listed(*given: Tensor) -> Sequence[Tensor]:
        found = function(*given)
        return list(found) if isinstance(found, tuple) else [found]

    return listed


A, B = numbers(K, 4, 5), numbers(K, 4, 5).flip(0)
SPECIAL = torch.tensor([math.nan, math.inf, -math.inf, 0.0, -0.0, 1.0, -2.5, 1e-30]).expand(K, 8).double()
WHOLE = torch.tensor([[7, -7, 0, 3], [2, 5, -1, 9], [1, 1, 4, -6]])
PLACES = torch.tensor([[0, 2, 2], [3, 1, 0], [2, 2, 2]])
OPERATIONS: dict[str, tuple[Callable[..., Any], list[Tensor]]] = {
    "arithmetic": (lambda a, b: a * 2 - b / 3 + 0.5 * (1 - a) - 0.25, [A, B]),
    "one row with all": (lambda a, b: a - b[0] + b[:, :1] * 2, [A, B]),
    "transposed": (lambda a, b: (a.t() + b.t()).t() * a, [A, B]),
    "powers and roots": (lambda a: a**2 + a**3 + (a.abs() + 1).sqrt() + (a.abs() + 1).rsqrt() + a.abs() ** 1.5, [A]),
    "exponentials": (lambda a: a.exp() + (a.abs() + 1).log() + a.abs().log1p() + a.sigmoid() + a.tanh(), [A]),
    "waves": (lambda a: a.sin() * a.cos() - a.reciprocal(), [A]),
    "choices": (lambda a, b: torch.where(a > b, a, -b) + a.clamp(-0.5, 0.5) + a.clamp(min=0.1) + a.relu(), [A, B]),
    "signs": (lambda a: a.sign() + (a.neg() <= 0).double() + a.floor() + a.round(), [A]),
    "the larger and the smaller": (lambda a, b: torch.maximum(a, b) - torch.minimum(a, b), [A, B]),
    "whole numbers": (lambda a: (a * 3 + 1) % 5 + (a >> 1) - (a << 2) + (a ^ 3) + (a & 6) + (a | 1), [WHOLE]),
    "remainders": (lambda a: a.remainder(0.3), [A]),
    "flags": (lambda a, b: ((a > 0) & (b > 0)).double() + ((a > 0) | ~(b > 0)).double(), [A, B]),
    "types": (lambda a, n: a.float() * n[:, None].to(torch.float32) + (n > 2)[:, None], [A, WHOLE]),
    "sums": (lambda a: (a.sum(), a.sum(0), a.sum(1), a.mean((0, 1)), a.mean(1, keepdim=True), a.norm()), [A]),
    "sums of a view": (lambda a: (a.t().sum(0), a[:, 1:4].sum(0), a[1:, 2].sum()), [A]),
    "largest": (lambda a: (a.amax(1), a.amin(0), a.argmax(1), a.argmin(0), a.argmax()), [A]),
    "any and all": (lambda a: ((a > 0).any(), (a > 0).all(1), (a > -9).all(0), (a > 0).any(0)), [A]),
    "spread": (lambda a: (a.std(), a.var(1), a.std(0, correction=0)), [A]),
    "running sums": (lambda a: (a.cumsum(0), a.cumsum(1)), [A]),
    "softmax": (lambda a, b: (a.softmax(1), a.log_softmax(1), (a.t()).log_softmax(0)), [A, B]),
    "picks": (lambda a, i: (a.index_select(0, i), a[:3].gather(1, i[:, None]), a[i], a[:, i]), [A, PLACES]),
    "puts": (lambda a, i: a.scatter_add(1, i[None].expand(4, 3), a[:, 2:] * 2), [A, PLACES]),
    "joins": (lambda a, b: (torch.cat([a, b[1:3]]), torch.stack([a, b], 1), F.pad(a, (1, 2, 0, 1), value=3.0)), [A, B]),
    "parts": (lambda a: (*a.split([1, 3]), a.unbind(1)[2], a.chunk(2, 1)[1]), [A]),
    "layer norm": (lambda a: F.layer_norm(a, (5,)), [A]),
    "not finite": (lambda x: (x.relu(), x.clamp(-1, 1), x * 0, x.nan_to_num(), x.amax(), x > 0), [SPECIAL]),
    "not finite, in a softmax": (lambda x: (x[:3].softmax(0), x[2:].log_softmax(0)), [SPECIAL]),
    "an input as it was": (lambda a, b: (a, b.t(), a), [A, B]),
    "products": (lambda a, b: (a @ b.t(), a.t() @ b, a @ b[0], a[0] @ b[0], a.t() @ b[:, 1]), [A, B]),
    "many products": (lambda a, b: a[:, None] @ b[:, :, None], [A, B]),
    "gradients": (
        torch.func.grad(lambda a, b: (F.logsigmoid(a @ b.t()) * F.layer_norm(a, (5,)).sum(1)).std()), [A, B]
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["double", "float"])
def test_an_operation_gives_what_torch_gives(name: str, dtype: torch.dtype) -> None:
    function, inputs = several(OPERATIONS[name][0]), OPERATIONS[name][1]
    inputs = [x.to(dtype) if x.is_floating_point() else x for x in inputs]
    for got, want in zip(ran(function, inputs), stacked(function, inputs), strict=True):
        tolerance = 1e-13 if dtype == torch.float64 else 2e-6
        torch.testing.assert_close(got, want, rtol=tolerance, atol=tolerance, equal_nan=True)


@settings(deadline=None, max_examples=12)
@given(
    sizes=some.tuples(*[some.sampled_from([1, 2, 3, 5, 10, 13, 16, 17, 32, 49, 100])] * 3),
    turned=some.tuples(some.booleans(), some.booleans()),
    dtype=some.sampled_from([torch.float64, torch.float32]),
)
def test_products_of_all_shapes(sizes: tuple[int, int, int], turned: tuple[bool, bool], dtype: torch.dtype) -> None:
    """Also of transposes, and of the result's."""
    rows, inner, columns = sizes
    a = numbers(K, inner, rows) if turned[0] else numbers(K, rows, inner)
    b = numbers(K, columns, inner) if turned[1] else numbers(K, inner, columns)

    def product(a: Tensor, b: Tensor) -> Sequence[Tensor]:
        a, b = (x.t() if t else x for x, t in zip((a, b), turned, strict=True))
        return [a @ b, (b.t() @ a.t()).t() * 2]

    inputs = [a.to(dtype), b.to(dtype)]
    tolerance = 1e-12 if dtype == torch.float64 else 2e-5
    for got, want in zip(ran(product, inputs), stacked(product, inputs), strict=True):
        torch.testing.assert_close(got, want, rtol=tolerance, atol=tolerance * inner)


def looped(step: Step, inputs: Sequence[Tensor], carry: int, rows: Tensor) -> list[Tensor]:
    """The carries after a step for each of the rows that is not padding."""
    sample = [x[0] for x in (*inputs, rows, torch.zeros(K, dtype=torch.int64))]

    def turn(*given: Tensor) -> Sequence[Tensor]:
        *flat, rows, key = given
        return noted(0, carry, rows, key, flat, [])

    number = torch.zeros((), dtype=torch.int64)
    body = shortened(lambda *x: step(*x[:-3]), [*sample[:-2], sample[-1], rows[0, 0], number], carry, WAYS)
    graph = shortened(turn, sample, 0, WAYS)
    program = written(graph, [(body, None)], sample, [True] * len(sample))
    results = program.results(K)
    program([*inputs, rows, torch.zeros(K, dtype=torch.int64)], results, 0, K)
    return results


@pytest.mark.parametrize(("step", "carry"), CASES, ids=[c[0].__name__ for c in CASES])
def test_steps_give_what_they_give_in_torch(step: Step, carry: tuple[Tensor, ...]) -> None:
    """Whatever is read, returned or shared; each client makes as many as it has batches."""
    inputs = [*carry, X, RATE]
    before = [x.clone() for x in inputs]
    rows = torch.tensor([[0, 0, 0, 0], [0, -1, 0, -1], [-1, -1, -1, -1]])[:, :, None]
    state = looped(step, inputs, 2, rows)
    for k, steps in enumerate((4, 2, 0)):
        want = [x[k] for x in carry]
        for _ in range(steps):
            want = list(step(*want, X[k], RATE[k]))
        for got, expected in zip(state, want, strict=True):
            torch.testing.assert_close(got[k], expected, rtol=0, atol=1e-12)
    assert all(torch.equal(a, b) for a, b in zip(inputs, before, strict=True)), "what comes in was overwritten"


@pytest.mark.parametrize("rows", [3, 12, 13, 40])
def test_all_that_is_added_to_a_weight_is_added_to_every_row(rows: int) -> None:
    """A weight is gone through row by row, in blocks that need not divide it."""
    w, shift, x, rate = numbers(K, rows, 7), numbers(K, rows, 7) * 0.1, numbers(K, 4, 7), numbers(K) * 0.1

    def step(w: Tensor, shift: Tensor, x: Tensor, rate: Tensor) -> Sequence[Tensor]:
        dw = torch.func.grad(lambda w: torch.tanh(F.linear(x, w)).square().mean())(w)
        return w + -rate * (dw + shift + 0.1 * (w - shift)), shift

    (got, _), want = looped(step, [w, shift, x, rate], 2, torch.zeros(K, 3, 1, dtype=torch.int64)), w
    for _ in range(3):
        want = torch.stack([step(want[k], shift[k], x[k], rate[k])[0] for k in range(K)])
    torch.testing.assert_close(got, want, rtol=0, atol=1e-12)


def test_what_has_no_c_is_refused() -> None:
    refused: list[Callable[[Tensor], Tensor]] = [
        torch.linalg.svdvals,
        torch.special.i0,
        lambda a: a.to(torch.bfloat16),
        lambda a: a.t().argmax(),
    ]
    for function in refused:
        with pytest.raises(Uncompiled):
            ran(several(function), [A])


@pytest.mark.parametrize("place", [99, -99])
def test_what_is_not_there_is_neither_read_nor_written(place: int) -> None:
    i = torch.tensor([0, 1, place]).expand(K, 3)
    picks: list[Callable[[Tensor, Tensor], Tensor]] = [
        lambda a, i: a.index_select(0, i),
        lambda a, i: a[i],
        lambda a, i: a[:3].gather(1, i[:, None]),
        lambda a, i: a.scatter_add(1, i[None], a),
    ]
    for pick in picks:
        program = made(several(pick), [A, i % 3])
        with pytest.raises(IndexError, match="labels"):
            program([A, i.contiguous()], program.results(K), 0, K)


def test_a_program_leaves_nothing_behind() -> None:
    """Neither a file nor, once nobody holds it, its code."""
    code = """
import gc, pathlib, tempfile, torch
from tests.compiled.test_program import A, ran
mapped = lambda: pathlib.Path("/proc/self/maps").read_text().count("turns.so")
held = ran(lambda a: [a + 1], [A])
gc.collect()
print(mapped(), len(list(pathlib.Path(tempfile.gettempdir()).glob("weft-*/turns.so"))))
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.split() == ["0", "0"]
