"""On quadratics with different minimisers a method reaches the optimum, or provably does not, as its file promises.

Four clients, f_i(w) = sum_j a_ij / 2 (w_j - b_ij)^2 over three tensors, every client equally large; all in every round,
and three of four in a second run.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.laws.toys import draw, subjects
from weft.core import Net, Out
from weft.core.clients import Group
from weft.core.here import Here
from weft.core.registry import REGISTRY
from weft.core.round import begin, play
from weft.core.task import Examples
from weft.executors import Batched

SHAPES = {"u": (2,), "v": (), "w": (1, 2)}
CLIENTS = 4


def world() -> tuple[Net, Examples, list[Any], dict[str, Tensor]]:
    """(net, one example per client that holds (a, b), rows, optimum)."""
    rng = torch.Generator().manual_seed(5)
    size = sum(max(1, torch.Size(s).numel()) for s in SHAPES.values())
    a = 0.5 + 2 * torch.rand(CLIENTS, size, generator=rng, dtype=torch.float64)
    b = 3 * torch.randn(CLIENTS, size, generator=rng, dtype=torch.float64)
    data = Examples(torch.stack([a, b], 1), torch.zeros(CLIENTS, dtype=torch.int64), dtype=torch.float64)

    def init(seed: int) -> dict[str, Tensor]:
        return {k: torch.zeros(s, dtype=torch.float64) for k, s in SHAPES.items()}

    def forward(tree: dict[str, Tensor], x: Tensor, live: Tensor | None, key: Tensor | None) -> tuple[Out, Any]:
        flat = torch.cat([tree[k].flatten() for k in SHAPES])
        value = (0.5 * x[:, 0] * (flat - x[:, 1]) ** 2).sum(1)
        return Out(value[:, None], value[:, None]), {}

    net = Net(init, forward, {k: frozenset() for k in SHAPES}, criterion=lambda logits, y: logits[:, 0])
    best = (a * b).sum(0) / a.sum(0)
    parts = best.split([max(1, torch.Size(s).numel()) for s in SHAPES.values()])
    optimum = {k: p.reshape(s) for (k, s), p in zip(SHAPES.items(), parts, strict=True)}
    return net, data, [torch.tensor([i]).numpy() for i in range(CLIENTS)], optimum


OPTIONS: dict[str, dict[str, Any]] = {"fedamd": {"p": 0.5}, "feddyn": {"alpha": 0.5}, "fedprox": {"mu": 1.0}}


def distance(name: str, cohort: int, rounds: int = 80) -> float:
    """How far from the optimum a method ends, in the largest entry."""
    net, data, rows, optimum = world()
    method = REGISTRY[name].make(lr=0.05, **OPTIONS.get(name, {}))
    turn = partial(draw, rows=rows, epochs=8)
    clients = Here.begin(method, [Group(net, torch.arange(CLIENTS))], data, turn, Batched(rounds=rounds))
    federation = begin(method, clients, CLIENTS)
    for number in range(1, rounds + 1):
        order = torch.randperm(CLIENTS, generator=torch.Generator().manual_seed(number))[:cohort]
        ids = torch.sort(order).values
        federation = play(federation, number, ids).federation
    return max(float((federation.server.model[k] - optimum[k]).abs().max()) for k in SHAPES)


@pytest.mark.parametrize("cohort", [4, 3])
@pytest.mark.parametrize("name", subjects("quadratics"))
def test_promise(name: str, cohort: int) -> None:
    promised = REGISTRY[name].reaches_optimum
    away = distance(name, cohort, rounds=80 if promised else 120)  # who may not arrive has more time to
    assert (away < 1e-3) == promised, away


def test_promises_of_both_kinds() -> None:
    assert {REGISTRY[n].reaches_optimum for n in subjects("quadratics")} == {True, False}
