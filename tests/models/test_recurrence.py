"""A layer of an LSTM: its own rules against what autograd makes of the plain loop, and its paths against each other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import grad, jacrev, vmap
from torch.utils.flop_counter import FlopCounterMode

import weft
from weft.data.shelf import shakespeare
from weft.local.graph import traced
from weft.models import recurrence
from weft.models.lstm import CharacterLSTM
from weft.models.recurrence import lstm

torch.set_num_threads(1)
ALL = (0, 1, 2, 3)
Layer = Callable[..., Tensor]
fused = pytest.mark.skipif(not recurrence.FUSED, reason="this torch has no fused layer of oneDNN")


def tensors(*lead: int, dtype: torch.dtype = torch.float64, width: int = 4) -> list[Tensor]:
    """x, w_x, w_h and b of clients with 2 examples of 5 moments and 3 inputs."""
    draw = torch.Generator().manual_seed(3)
    shapes = ((2, 5, 3), (4 * width, 3), (4 * width, width), (4 * width,))
    return [torch.randn(*lead, *s, generator=draw, dtype=dtype) for s in shapes]


def loop(x: Tensor, w_x: Tensor, w_h: Tensor, b: Tensor) -> Tensor:
    """The layer as its formulas read."""
    h = c = torch.zeros_like(x[:, 0, :1] * w_h[:1])
    out = []
    for moment in x.unbind(1):
        i, f, g, o = (moment @ w_x.T + h @ w_h.T + b).chunk(4, 1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        h = o.sigmoid() * c.tanh()
        out.append(h)
    return torch.stack(out, 1)


def keeping_nothing(*inputs: Tensor) -> Tensor:
    return lstm(*inputs, keep=False)


def loss(layer: Layer) -> Layer:
    return lambda *inputs: (layer(*inputs) * torch.arange(1, 6, dtype=inputs[0].dtype)[:, None]).square().sum()


def steepness(layer: Layer) -> Layer:
    """A loss that holds a gradient."""
    return lambda *inputs: sum((g.square().sum() for g in grad(loss(layer), ALL)(*inputs)), torch.zeros(()))


def close(got: Sequence[Tensor], want: Sequence[Tensor], gap: float) -> None:
    for a, b in zip(got, want, strict=True):
        assert a.dtype == b.dtype
        assert float((a - b).abs().max()) <= gap * float(b.abs().max())


@pytest.mark.parametrize("layer", [lstm, keeping_nothing])
def test_gradients_are_those_of_differences(layer: Layer) -> None:
    inputs = [v.requires_grad_() for v in tensors(width=2)]
    assert torch.autograd.gradcheck(layer, inputs)
    assert torch.autograd.gradgradcheck(layer, inputs, fast_mode=True)


@pytest.mark.parametrize("of", [loss, steepness])
@pytest.mark.parametrize("layer", [lstm, keeping_nothing])
@pytest.mark.parametrize(("dtype", "gap"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_alone_together_and_the_plain_loop_agree(
    of: Callable[[Layer], Layer], layer: Layer, dtype: torch.dtype, gap: float
) -> None:
    stacked = tensors(3, dtype=dtype)
    together, outputs = vmap(grad(of(layer), ALL))(*stacked), vmap(layer)(*stacked)
    nested = vmap(vmap(grad(of(layer), ALL)))(*(v[None] for v in stacked))
    for k in range(3):
        one = [v[k] for v in stacked]
        plain = grad(of(loop), ALL)(*one)
        close([outputs[k], layer(*one)], [loop(*one)] * 2, gap)
        close(grad(of(layer), ALL)(*one), plain, gap)
        close([g[k] for g in together], plain, gap)
        close([g[0, k] for g in nested], plain, gap)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_what_clients_share_need_not_be_stacked(dtype: torch.dtype) -> None:
    stacked, shared = tensors(3, dtype=dtype), tensors(dtype=dtype)
    got = vmap(grad(loss(lstm), ALL), in_dims=(0, None, None, None))(stacked[0], *shared[1:])
    for k in range(3):
        close([g[k] for g in got], grad(loss(loop), ALL)(stacked[0][k], *shared[1:]), 1e-5)
    close(jacrev(lstm, ALL)(*shared), jacrev(loop, ALL)(*shared), 1e-5)  # only what comes from above is stacked


@fused
def test_the_fused_layer_is_the_general_one(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = [v * 0.2 for v in tensors(dtype=torch.float32, width=32)]
    quick = grad(loss(lstm), ALL)(*inputs), lstm(*inputs), keeping_nothing(*inputs)
    monkeypatch.setattr(recurrence, "FUSED", False)
    close(quick[0], grad(loss(lstm), ALL)(*inputs), 1e-5)
    close(quick[1:], [lstm(*inputs)] * 2, 1e-5)
    assert not torch.equal(quick[1], lstm(*inputs)), "both took the same path"


@pytest.mark.parametrize("stacked", [False, True], ids=["alone", "stacked"])
@pytest.mark.parametrize("quick", [pytest.param(True, marks=fused), False], ids=["fused", "general"])
def test_products_in_bfloat16(stacked: bool, quick: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recurrence, "FUSED", quick)
    inputs = [v * 0.2 for v in tensors(*[2] * stacked, dtype=torch.float32, width=32)]

    def low(*inputs: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
            return loss(lstm)(*inputs)

    many: Any = vmap if stacked else lambda f: f
    got, want = (many(grad(f, ALL))(*inputs) for f in (low, loss(loop)))
    close(got, want, 0.03)
    assert not any(torch.equal(a, b) for a, b in zip(got, want, strict=True))


@pytest.mark.parametrize(("dtype", "gap"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
@pytest.mark.parametrize("stacked", [False, True], ids=["alone", "stacked"])
def test_a_step_can_be_traced(dtype: torch.dtype, gap: float, stacked: bool) -> None:
    inputs = tensors(*[3] * stacked, dtype=dtype)
    many: Any = vmap if stacked else lambda f: f

    def step(*inputs: Tensor) -> list[Tensor]:
        slopes = many(grad(loss(lstm), ALL))(*inputs)
        return [v + -0.1 * g for v, g in zip(inputs, slopes, strict=True)]

    none, zero = torch.zeros(1, 1), torch.zeros(1, dtype=torch.int64)
    fold = traced(lambda *x: step(*x[:-2]), [*(v.clone() for v in inputs), none[0], zero[0]], 4)
    close(fold([v.clone() for v in inputs], [], none, zero, 0, 1), step(*inputs), gap)


@fused
def test_the_fused_layer_counts_as_many_operations_as_the_products_it_makes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The plan of a run follows from it."""

    def counted() -> int:
        with FlopCounterMode(display=False) as counter:
            grad(loss(lstm), ALL)(*tensors(dtype=torch.float32))
        return counter.get_total_flops()

    quick = counted()
    monkeypatch.setattr(recurrence, "FUSED", False)
    assert quick == pytest.approx(counted(), rel=0.2) and quick == 3 * 2 * 2 * 5 * 16 * (3 + 4)


def test_fedavg_on_the_plays_is_the_same_one_by_one_and_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(import_module("weft.local.stack"), "WORTH", 1)  # so that steps are traced
    source = shakespeare(minimum=42000, length=12)  # three roles
    data = weft.federate(source, partition="natural")

    def trained(**plan: Any) -> dict[str, Tensor]:
        result = weft.run(
            "fedavg", data, model=lambda: CharacterLSTM(source.vocabulary, source.classes, 8), rounds=1, cohort=3,
            batch_size=1000, precision="fp64", device="cpu", **plan,
        )  # fmt: skip
        return result.federation.server.model

    want = trained(executor="loop")
    for plan in ({"chunk": 3}, {"chunk": 1, "workers": 2}):
        got = trained(**plan)
        for name in want:
            torch.testing.assert_close(got[name], want[name], rtol=0, atol=1e-9)
