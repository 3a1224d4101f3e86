"""A client that had no turn answers, by what it receives and by its own examples alone."""

from __future__ import annotations

import functools
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

from tests.laws.test_central import Plain
from tests.laws.toys import CLASSES, CLIENTS, INPUTS, ROWS, draw, groups, make, start, subjects
from weft.core import Input, Net
from weft.core.registry import REGISTRY
from weft.core.round import Federation, play
from weft.evaluation.answers import answer
from weft.evaluation.protocol import looking

TWINS = [CLIENTS - 2, CLIENTS - 1]
OWN = [*ROWS[:-1], ROWS[-2]]  # the last two clients have the same examples
NET = replace(Net.from_module(Plain, dtype=torch.float64), input=Input((INPUTS,)))  # no dropout, which nobody shares
whole = partial(draw, rows=OWN, batch_size=64)  # batches of all examples, so that their order does not matter
VIEWS = [(name, view) for name in subjects("newcomers") for view in REGISTRY[name].make().views]


@functools.cache
def trained(name: str) -> Federation:
    """After two rounds without the twins."""
    federation = start(make(name), groups(name, NET))
    federation = replace(federation, clients=replace(federation.clients, draw=whole))  # type: ignore[type-var]
    for number in (1, 2):
        federation = play(federation, number, torch.arange(CLIENTS - 2)).federation
    return federation


@pytest.mark.parametrize(("name", "view"), VIEWS)
def test_newcomers_with_the_same_examples_answer_alike(name: str, view: str) -> None:
    federation = trained(name)
    asked: Any = [np.concatenate(ROWS) if k in TWINS else np.zeros(0, np.int64) for k in range(CLIENTS)]
    said = answer(
        federation.clients,  # type: ignore[arg-type]
        federation.method.views[view],
        looking(federation, 3),
        asked,
        np.arange(CLIENTS),
        federation.turns,
        3,
        scores=True,
    )
    assert said.scores is not None and said.scores.shape == (2 * len(asked[-1]), CLASSES)
    assert np.isfinite(said.scores).all() and said.scores.std(0).any()
    one, other = np.split(said.scores, 2)
    assert abs(one - other).max() <= 1e-9
