"""A round changes neither its inputs nor clients that were not in it, and padding changes nothing."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from tests.laws.toys import CLIENTS, EXAMPLES, but, cohort, draw, gap, replayed, subjects, trained
from weft.core.method import Phase
from weft.core.round import play
from weft.core.task import Turn
from weft.core.turn import Execute
from weft.executors import Batched, loop


@pytest.mark.parametrize("execute", [Batched(), loop], ids=["batched", "loop"])
@pytest.mark.parametrize("name", subjects("inputs"))
def test_inputs_are_unchanged(name: str, execute: Execute) -> None:
    federation = but(trained(name, 2), execute=execute)
    server = [x.clone() for x in tree_leaves(federation.server)]
    seen = (EXAMPLES.x.clone(), EXAMPLES.y.clone())
    turns = federation.turns.clone()
    play(federation, 3, cohort(3))
    assert all(torch.equal(a, b) for a, b in zip(server, tree_leaves(federation.server), strict=True))
    assert torch.equal(turns, federation.turns)
    assert torch.equal(seen[0], EXAMPLES.x) and torch.equal(seen[1], EXAMPLES.y)


@pytest.mark.parametrize("name", subjects("inputs"))
def test_absent_clients_keep_their_state(name: str) -> None:
    federation = trained(name, 2)
    absent = [k for k in range(CLIENTS) if k not in cohort(3)]
    assert absent

    def theirs() -> list[Tensor]:
        return tree_leaves(
            [
                store.gather(
                    torch.searchsorted(g.ids, torch.tensor([k for k in absent if k in g.ids], dtype=torch.int64))
                )
                for store, g in zip(federation.clients.kept, federation.groups, strict=True)
            ]
        )

    before = [x.clone() for x in theirs()]
    play(federation, 3, cohort(3))
    assert all(torch.equal(a, b) for a, b in zip(before, theirs(), strict=True))


def padded(number: int, ids: Tensor, phases: Mapping[str, Phase], past: Tensor) -> Turn:
    """Turns with two more empty steps, two more empty places in each batch, and two more empty rows."""
    turn = draw(number, ids, phases, past)

    def wider(s: Tensor) -> Tensor:
        return torch.nn.functional.pad(s, (0, 2, 0, 2), value=-1)

    rows = torch.nn.functional.pad(turn.rows, (0, 2), value=-1)
    return turn._replace(rows=rows, steps={k: wider(s) for k, s in turn.steps.items()})


@pytest.mark.parametrize("name", subjects("padding"))
def test_padding_changes_nothing(name: str) -> None:
    for execute in (Batched(), loop):
        assert gap(replayed(name, execute), replayed(name, execute, padded)) <= 1e-9
