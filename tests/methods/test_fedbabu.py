"""FedBABU against its reference: the head never moves, and answers come from a fine-tuned copy of the present body."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from bridge import answer, close, kept, run
from reference.fedbabu import body, fine_tuned
from reference.fedbabu import fedbabu as ref_fedbabu
from reference.fedper import Keep, head
from reference.model import BnMlp, Mlp, Model
from reference.world import World, make_world

from weft.core.turn import Execute
from weft.executors import Batched, loop
from weft.methods.fedbabu import fedbabu

HEAVY: dict[str, Any] = {"momentum": 0.5, "weight_decay": 0.01}
PARTS: dict[Any, Keep] = {"all": lambda name: True, "head": head, "body": body}
SETTINGS = [(loop, 0, Mlp), (Batched(), 1, Mlp), (Batched(2), 2, BnMlp)]


def rows(world: World, client: int) -> list[Any]:
    """Two epochs in batches of three."""
    n = len(world.y[client]) - len(world.y[client]) % 3
    return [np.arange(n)[at : at + 3] for at in range(0, n, 3)] * 2


@pytest.mark.parametrize("adapt", PARTS)
@pytest.mark.parametrize(("execute", "seed", "net"), SETTINGS, ids=["loop", "all", "two"])
def test_equals_the_reference(adapt: Any, execute: Execute, seed: int, net: Model) -> None:
    world = make_world(seed, model=net)
    world.turns = [t for t in world.turns if t.ids]
    fed = run(world, fedbabu(lr=0.2, adapt=adapt, **HEAVY), execute)
    out = ref_fedbabu(world, lr=0.2, **HEAVY)
    assert out.model is not None
    close(fed.server.model, {k: v for k, v in out.model.items() if body(k)})
    for i in range(world.population):
        close(kept(fed)[i], {k: v for k, v in world.first.items() if head(k)}, 0)
        tuned = fine_tuned(world, i, out.model, rows(world, i), lr=0.2, part=PARTS[adapt], **HEAVY)
        want, untuned = (net.logits(w, world.x[i]) for w in (tuned, out.model))
        np.testing.assert_allclose(answer(fed, world, i, adapt=rows(world, i)), want, rtol=0, atol=1e-9)
        np.testing.assert_allclose(answer(fed, world, i), untuned, rtol=0, atol=1e-9)  # no epochs: not tuned
        np.testing.assert_allclose(answer(fed, world, i, "global"), untuned, rtol=0, atol=1e-9)


def test_answering_changes_nothing() -> None:
    world = make_world(0)
    fed = run(world, fedbabu(lr=0.2), loop)
    before = {k: v.clone() for k, v in fed.server.model.items()}
    once, twice = (answer(fed, world, 1, adapt=rows(world, 1)) for _ in range(2))
    assert (once == twice).all() and all(torch.equal(before[k], fed.server.model[k]) for k in before)
