"""APPLE against its reference, and its limits."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from bridge import answer, close, kept, run
from reference.apple import apple as ref_apple
from reference.apple import fade
from reference.descent import combine
from reference.model import BnMlp, Mlp, Model
from reference.world import World, make_world

from weft.core import Round
from weft.core.round import Federation
from weft.core.turn import Execute
from weft.executors import Batched, loop
from weft.methods.apple import apple


def weights(fed: Federation, world: World, client: int) -> Any:
    """p of a client, in the order of clients."""
    share = np.array(world.counts(list(range(world.population))))
    shift = kept(fed)[client].shift
    others = shift["others"][: world.population - 1].numpy()
    return share / share.sum() + np.insert(others, client, shift["own"])


@pytest.mark.parametrize("decay", ["exponential", "cosine"])
@pytest.mark.parametrize(
    ("execute", "seed", "net"),
    [(loop, 0, Mlp), (Batched(), 1, Mlp), (Batched(2), 2, BnMlp)],
    ids=["loop", "all", "two"],
)
def test_equals_the_reference(decay: Any, execute: Execute, seed: int, net: Model) -> None:
    world = make_world(seed, rounds=4, model=net)
    for turn in world.turns:
        turn.ids = [i for i in turn.ids if i != 1]
    ours = apple(lr=0.2, momentum=0.5, lr_p=0.03, mu=0.4, decay=decay, decay_rounds=3)
    fed = run(world, ours, execute)
    out = ref_apple(world, lr=0.2, lr_coef=0.03, mu=0.4, L=3, kind=decay, momentum=0.5)
    names, own = net.trainable(world.first), kept(fed)
    cores = [{k: c[k] for k in names} for c in out.extra["cores"]]
    for i, p in out.kept.items():
        np.testing.assert_allclose(weights(fed, world, i), p, rtol=0, atol=1e-9)
        close(own[i].core, cores[i])
        close({k: v[i] for k, v in fed.server.cores.items()}, cores[i])
    for i, tree in out.extra["personal"].items():
        close(own[i].mixture, tree)
        np.testing.assert_allclose(answer(fed, world, i), net.logits(tree, world.x[i]), rtol=0, atol=1e-9)
    share = np.array(world.counts(list(range(world.population))))
    new = {**world.first, **combine(cores, list(share / share.sum()))}
    np.testing.assert_allclose(answer(fed, world, 1), net.logits(new, world.x[1]), rtol=0, atol=1e-9)


def test_a_download_holds_the_others_and_an_upload_the_core() -> None:
    world = make_world(0, rounds=2)
    method = apple(lr=0.2, lr_p=0.03)
    fed = run(world, method, loop)
    ids = torch.arange(world.population)
    down = method.send(fed.server, Round(3, ids, world.population, fed.net))
    for i in ids.tolist():
        others = [j for j in ids.tolist() if j != i]
        for name, x in down.others.items():
            assert torch.equal(x[i], fed.server.cores[name][others])
    assert set(method.up) == {"model"}
    for i, own in kept(fed).items():
        close({k: x[i] for k, x in fed.server.cores.items()}, {k: v.numpy() for k, v in own.core.items()})


def test_the_pull_fades_and_ends() -> None:
    """A client whose first turn is in round 2 does not feel a pull that lasted one round."""
    world = make_world(0, rounds=2)
    for turn, ids in zip(world.turns, ([0], [2]), strict=True):
        turn.ids = ids
    for rounds, felt in ((1, False), (2, True)):
        a, b = (kept(run(world, apple(lr_p=0.1, mu=mu, decay_rounds=rounds), loop))[2].shift for mu in (0.0, 5.0))
        assert torch.equal(a["others"], b["others"]) != felt
    assert [fade(r, 4, "cosine") for r in (0, 2, 4, 9)] == pytest.approx([1, 0.5, 0, 0])
    assert [fade(r, 4, "exponential") for r in (0, 2, 4)] == pytest.approx([1, 0.001**0.5, 0])
