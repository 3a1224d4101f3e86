"""One client with all the data is central training."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tests.laws.toys import EXAMPLES, INPUTS, ROWS, draw, make, subjects
from weft.core import Net
from weft.core.clients import Group
from weft.core.here import Here
from weft.core.registry import REGISTRY
from weft.core.round import begin, play
from weft.executors import Batched
from weft.local import SGD


class Plain(nn.Module):
    """Batch norm as torch has it, no dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.norm, self.head = nn.Linear(INPUTS, 6), nn.BatchNorm1d(6), nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.tanh(self.norm(self.body(x))))


@pytest.mark.parametrize("name", [*subjects("central"), "scaffold"])
def test_one_client_is_central_training(name: str) -> None:
    """Three rounds of one epoch equal a plain PyTorch loop with its own optimiser and batch norm.

    At their neutral setting; SCAFFOLD has none, but with one client its controls cancel.
    """
    everything = np.concatenate(ROWS)
    net = Net.from_module(Plain, dtype=torch.float64)
    neutral = REGISTRY[name].neutral
    method: Any = make(name, **{**(neutral[2] if neutral else {}), "opt": SGD(0.1)})
    turn = partial(draw, rows=[everything], batch_size=9)
    clients = Here.begin(method, [Group(net, torch.arange(1))], EXAMPLES, turn, Batched(), seed=4)
    federation = begin(method, clients, 1, seed=4)
    plain = Plain().double()
    plain.load_state_dict(net.init(4), strict=False)
    optimiser = torch.optim.SGD(plain.parameters(), lr=0.1)
    one = torch.zeros(1, dtype=torch.int64)
    for number in (1, 2, 3):
        batches = turn(number, one, method.phases, torch.zeros(1)).steps["local"][0]
        federation = play(federation, number, one).federation
        plain.train()
        for rows in batches:
            rows = rows[rows >= 0]
            optimiser.zero_grad()
            nn.functional.cross_entropy(plain(EXAMPLES.x[rows]), EXAMPLES.y[rows]).backward()
            optimiser.step()
    state = plain.state_dict()
    for key, value in federation.server.model.items():
        assert float((value.reshape(state[key].shape) - state[key]).abs().max()) < 1e-6, key
