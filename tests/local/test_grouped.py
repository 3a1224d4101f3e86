"""Convolutions of stacked clients as products: the numbers and slopes of torch's grouped convolution."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import grad, vmap
from torch.fx.experimental.proxy_tensor import make_fx

from weft.local import grouped

LOOKS: dict[str, dict[str, Any]] = {
    "plain": {},
    "padded": {"padding": (2, 1)},
    "in strides": {"stride": (2, 1), "padding": 1},
    "with holes": {"dilation": (2, 1)},
}
CLIENTS = 3


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("look", LOOKS)
def test_a_step_of_stacked_convolutions(look: str, bias: bool) -> None:
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(CLIENTS, 4, 2, 9, 8, generator=draw, dtype=torch.float64)
    weights = [
        torch.randn(CLIENTS, *shape, generator=draw, dtype=torch.float64) for shape in ((5, 2, 3, 2), (4, 5, 3, 3))
    ]
    biases = [torch.randn(CLIENTS, n, generator=draw, dtype=torch.float64) for n in (5, 4)] if bias else []

    def step(weights: Sequence[Tensor], x: Tensor) -> list[Tensor]:
        def loss(p: Sequence[Tensor]) -> Tensor:
            first, second = p[2:] if bias else (None, None)
            seen = torch.tanh(F.conv2d(x, p[0], first, **LOOKS[look]))
            return torch.tanh(F.conv2d(seen, p[1], second, padding=1)).square().mean()

        return [w - g for w, g in zip(weights, grad(loss)(weights), strict=True)]

    parameters = [*weights, *biases]
    stacked = vmap(step)
    run = make_fx(stacked, grouped.WAYS)(parameters, x)
    kinds = {str(node.target) for node in run.graph.nodes}
    assert not any("convolution" in kind for kind in kinds) and "aten.bmm.default" in kinds
    for got, want in zip(run(parameters, x), stacked(parameters, x), strict=True):
        torch.testing.assert_close(got, want, rtol=0, atol=1e-12)
        assert got.is_contiguous()


def test_one_client_s_convolution_stays() -> None:
    run = make_fx(lambda x, w: F.conv2d(x, w), grouped.WAYS)(torch.randn(2, 3, 5, 5), torch.randn(4, 3, 2, 2))
    assert any("aten.convolution" in str(node.target) for node in run.graph.nodes)
