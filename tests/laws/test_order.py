"""The reduction does not depend on who is called what: relabelling clients relabels the outcome."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from tests.laws.toys import CLIENTS, but, cohort, draw, kept, make, start, subjects, trained
from weft.core.method import Method, Phase, Round
from weft.core.round import Federation, play
from weft.core.task import Turn

RENAMED = torch.tensor([4, 2, 0, 5, 1, 3])  # RENAMED[new] = old


def renamed(number: int, ids: Tensor, phases: Mapping[str, Phase], past: Tensor) -> Turn:
    return draw(number, RENAMED[ids], phases, past)


def outcome(federation: Federation, ids: Tensor) -> Any:
    """What these clients keep, and the server's state, or of one with a row for each client what they are sent."""
    held, turns = federation.server, list[Method]()
    turn: Method | None = federation.method
    while turn:
        turns, turn = [*turns, turn], turn.next
    if any(t.private_send for t in turns):
        held = [t.send(federation.server, Round(4, ids, CLIENTS, federation.net)) for t in turns]
    return tree_map(lambda x: x[ids], kept(federation)), held


@pytest.mark.parametrize("name", subjects("names"))
def test_names_do_not_matter(name: str) -> None:
    a, b = trained(name), but(start(make(name)), draw=renamed)
    back = torch.argsort(RENAMED)
    for number in (1, 2, 3):
        b = play(b, number, torch.sort(back[cohort(number)]).values).federation
    theirs, ours = tree_leaves(outcome(a, RENAMED)), tree_leaves(outcome(b, torch.arange(CLIENTS)))
    assert (
        max((float((x - y).abs().max()) for x, y in zip(theirs, ours, strict=True) if x.numel()), default=0.0) <= 1e-9
    )
