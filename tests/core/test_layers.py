"""Batch norm that ignores padding, and dropout whose masks are drawn by client and step."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import vmap

from weft.core import Batch, Net
from weft.core.errors import SettingError
from weft.core.layers import MaskedBatchNorm, StreamDropout, replaced
from weft.core.stream import at_least, code, fold, uniform

SHAPES: list[tuple[Any, tuple[int, ...]]] = [
    (nn.BatchNorm1d, (6, 3)),
    (nn.BatchNorm1d, (6, 3, 5)),
    (nn.BatchNorm2d, (6, 3, 4, 5)),
    (nn.BatchNorm3d, (6, 3, 2, 2, 2)),
]


def pair(kind: Any, **options: Any) -> tuple[nn.Module, MaskedBatchNorm]:
    """A layer of torch with other than its first values, and ours made from a copy of it."""
    theirs, like = kind(3, **options).double(), kind(3, **options).double()
    with torch.no_grad():
        for i, (a, b) in enumerate(zip(theirs.state_dict().values(), like.state_dict().values(), strict=True)):
            if a.is_floating_point():
                a.copy_(torch.rand(3, generator=torch.Generator().manual_seed(i), dtype=torch.float64) + 0.5)
                b.copy_(a)
    return theirs, MaskedBatchNorm(like)


def examples(shape: tuple[int, ...], seed: int = 0) -> Tensor:
    return 3 + 2 * torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("options", [{}, {"momentum": 0.3, "eps": 0.1}, {"affine": False}], ids=str)
@pytest.mark.parametrize(("kind", "shape"), SHAPES)
def test_whole_batches_are_those_of_torch(kind: Any, shape: tuple[int, ...], options: dict[str, Any]) -> None:
    theirs, ours = pair(kind, **options)
    ours.live = torch.ones(shape[0], dtype=torch.float64)
    for seed in range(3):
        x = examples(shape, seed)
        torch.testing.assert_close(ours(x), theirs(x), rtol=0, atol=1e-10)
    for name in ("running_mean", "running_var"):
        torch.testing.assert_close(getattr(ours, name), getattr(theirs, name), rtol=0, atol=1e-12)
    torch.testing.assert_close(ours.eval()(x), theirs.eval()(x), rtol=0, atol=1e-10)


@pytest.mark.parametrize(("kind", "shape"), SHAPES)
def test_padding_is_not_seen(kind: Any, shape: tuple[int, ...]) -> None:
    theirs, _ = pair(kind)
    x = examples(shape)
    live = torch.tensor([1.0, 0, 1, 1, 0, 1], dtype=torch.float64)
    real = live > 0
    want = theirs(x[real])
    for junk in (0.0, 1e6):
        padded = torch.where(real.reshape([-1] + [1] * (x.ndim - 1)), x, junk)
        mine = pair(kind)[1]
        mine.live = live
        torch.testing.assert_close(mine(padded)[real], want, rtol=0, atol=1e-10)
        for name in ("running_mean", "running_var"):
            torch.testing.assert_close(getattr(mine, name), getattr(theirs, name), rtol=0, atol=1e-12)


def test_nothing_but_padding_changes_nothing() -> None:
    _, ours = pair(nn.BatchNorm1d)
    before = {k: v.clone() for k, v in ours.state_dict().items()}
    ours.live = torch.zeros(6, dtype=torch.float64)
    assert ours(examples((6, 3))).isfinite().all()
    assert all(torch.equal(v, before[k]) for k, v in ours.state_dict().items())


def test_gradients_are_those_of_torch() -> None:
    theirs, ours = pair(nn.BatchNorm1d)
    x = examples((6, 3))
    ours.live = torch.tensor([1.0, 1, 0, 1, 1, 1], dtype=torch.float64)
    real = ours.live > 0
    a, b = x.clone().requires_grad_(), x[real].clone().requires_grad_()
    (ours(a)[real] ** 3).sum().backward()
    (theirs(b) ** 3).sum().backward()
    assert a.grad is not None and b.grad is not None
    torch.testing.assert_close(a.grad[real], b.grad, rtol=0, atol=1e-9)
    assert not a.grad[~real].any()


def dropped(key: int, shape: tuple[int, ...] = (50, 40), p: float = 0.3, keep_axes: int | None = None) -> Tensor:
    layer = StreamDropout(p, keep_axes)
    layer.key = torch.tensor(key)
    out: Tensor = layer(torch.ones(shape, dtype=torch.float64))
    return out


def test_dropout_keeps_the_expectation() -> None:
    outs = torch.stack([dropped(k) for k in range(40)])
    assert set(outs.unique().tolist()) == {0.0, 1 / 0.7}
    assert abs(float(outs.mean()) - 1) < 0.01  # five deviations of 80,000 draws
    assert (outs.mean(0) - 1).abs().max() < 0.7 and (outs.mean((1, 2)) - 1).abs().max() < 0.08


def test_masks_differ_between_keys_and_are_the_same_for_one() -> None:
    assert torch.equal(dropped(3), dropped(3)) and not torch.equal(dropped(3), dropped(4))
    agree = (dropped(3) == dropped(4)).double().mean()
    assert abs(float(agree) - (0.7**2 + 0.3**2)) < 0.06  # as if independent


def test_whole_channels_are_dropped() -> None:
    out = dropped(1, (20, 30, 4, 4), keep_axes=2)
    assert ((out == 0).all((2, 3)) | (out > 0).all((2, 3))).all() and (out == 0).any() and (out > 0).any()
    for kind, axes in ((nn.Dropout, None), (nn.Dropout2d, 2), (nn.Dropout1d, 2)):
        layer = replaced(nn.Sequential(kind(0.4)))[0]  # type: ignore[index]
        assert isinstance(layer, StreamDropout) and (layer.p, layer.keep_axes) == (0.4, axes)


def test_no_dropout_when_judging_or_at_zero() -> None:
    x = torch.ones(10, 10)
    layer = StreamDropout(0.5).eval()
    assert layer(x) is x and StreamDropout(0.0)(x) is x


class Noisy(nn.Module):
    """Two dropouts, whose masks must differ, and a head that shows them."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Dropout(0.5), nn.Dropout(0.5)
        self.head = nn.Linear(64, 64, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.second(self.first(x)))


def test_masks_of_clients_steps_and_layers() -> None:
    net = Net.from_module(Noisy, dtype=torch.float64)
    tree = {"head.weight": torch.eye(64, dtype=torch.float64)}
    x, y = torch.ones(8, 64, dtype=torch.float64), torch.zeros(8, dtype=torch.int64)

    def out(key: Tensor) -> Tensor:
        return net.train(tree, Batch(x, y, torch.ones(8, dtype=torch.float64), key, torch.zeros(())))[0].logits

    clients = torch.tensor([11, 12, 13])
    keys = torch.stack([fold(fold(clients, code("local")), t) for t in range(4)], 1)  # [clients, steps]
    alone = torch.stack([torch.stack([out(k) for k in row]) for row in keys])
    together = vmap(lambda row: torch.stack([out(k) for k in row]))(keys)
    assert torch.equal(alone, together)
    flat = alone.flatten(0, 1)
    assert len({tuple(v.flatten().tolist()) for v in flat}) == 12
    # with one mask for both layers half the units would live, not a quarter
    assert abs(float((flat > 0).double().mean()) - 0.25) < 0.03
    assert torch.equal(net.apply(tree, x).logits, x)


def test_uniform_numbers_are_uniform() -> None:
    draws = torch.stack([uniform(torch.tensor(k), (1000,), torch.float64) for k in range(50)])
    assert draws.min() >= 0 and draws.max() < 1
    counts = torch.histc(draws.float(), 20, 0, 1)
    assert ((counts - 2500) ** 2 / 2500).sum() < 50  # chi-squared with 19 degrees of freedom: 1e-4
    rows = draws - draws.mean(1, keepdim=True)
    correlation = (rows @ rows.T) / rows.norm(dim=1)[:, None] / rows.norm(dim=1)
    assert (correlation - torch.eye(50)).abs().max() < 0.15
    many = partial(uniform, shape=(5,), dtype=torch.float64)
    assert torch.equal(vmap(many)(torch.arange(3)), torch.stack([many(torch.tensor(k)) for k in range(3)]))


@pytest.mark.parametrize("p", [0.0, 0.1, 0.25, 0.5, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_is_at_least_some_number(p: float, dtype: torch.dtype) -> None:
    for key in map(torch.tensor, (0, 5, 2**32 - 1)):
        assert torch.equal(
            at_least(p, key, (99, 1001), dtype), (uniform(key, (99, 1001), torch.float64) >= p).to(dtype)
        )


@pytest.mark.parametrize(
    ("module", "part"),
    [
        (nn.BatchNorm1d(3, momentum=None), "momentum=None"),
        (nn.BatchNorm1d(3, track_running_stats=False), "track_running_stats=False"),
        (nn.LSTM(3, 3), "LSTM cannot be run for many clients at once"),
    ],
)
def test_layers_that_cannot_be(module: nn.Module, part: str) -> None:
    with pytest.raises(SettingError, match=part):
        replaced(nn.Sequential(module))


def test_roles_are_found() -> None:
    module = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.LayerNorm(3), nn.Linear(3, 2))
    net = Net.from_module(module, roles={"stem": ["0."]})
    assert net.roles["3.weight"] == {"head"} and net.roles["0.bias"] == {"stem"}
    assert net.roles["1.weight"] == {"norm", "batchnorm"} and net.roles["2.bias"] == {"norm"}
    assert net.roles["1.running_var"] == {"norm", "batchnorm", "buffer"}
    assert net.buffers == {"1.running_mean", "1.running_var"}
    assert set(net.learnable(net.init(0))) == set(net.roles) - net.buffers
    assert (net.classes, net.width) == (2, 3)
    with pytest.raises(SettingError, match="head = 'tail' is no layer"):
        Net.from_module(module, "tail")
