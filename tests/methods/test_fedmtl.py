"""FedMTL against its references, and what its relations are."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from bridge import answer, close, kept, run
from reference.fedmtl import fedmtl as ref_fedmtl
from reference.fedmtl import omega, penalty, related
from reference.local import local as ref_local
from reference.model import BnMlp, Mlp, Model
from reference.world import make_world

from weft.core.turn import Execute
from weft.executors import Batched, loop
from weft.methods.fedmtl import FLOOR, fedmtl, relations

HEAVY: dict[str, Any] = {"momentum": 0.5, "weight_decay": 0.01}
RUNS = pytest.mark.parametrize(
    ("execute", "seed", "net"),
    [(loop, 0, Mlp), (Batched(), 1, Mlp), (Batched(2), 2, BnMlp)],
    ids=["loop", "batched", "chunked-norm"],
)


@RUNS
def test_the_pull_to_the_mean_equals_the_reference(execute: Execute, seed: int, net: Model) -> None:
    world = make_world(seed, rounds=4, model=net)
    own = kept(run(world, fedmtl(lr=0.1, lam=0.4, relation="mean", **HEAVY), execute))
    out = ref_fedmtl(world, lr=0.1, lam=0.4, everybody=True, **HEAVY)
    for i, model in out.kept.items():
        close(own[i], model)


@RUNS
def test_learnt_relations_equal_the_reference(execute: Execute, seed: int, net: Model) -> None:
    world = make_world(seed, rounds=4, model=net)
    fed = run(world, fedmtl(lr=0.1, lam=1e-3, **HEAVY), execute)
    out, own = related(world, lr=0.1, lam=1e-3, floor=FLOOR, **HEAVY), kept(fed)
    for i, model in out.kept.items():
        close(own[i], model)
        if any(i in t.ids for t in world.turns):
            np.testing.assert_allclose(answer(fed, world, i), net.logits(model, world.x[i]), rtol=0, atol=1e-9)
    found = relations(fed.server.models).numpy()
    np.testing.assert_allclose(found, omega(world, list(out.kept.values()), FLOOR), rtol=1e-6)
    sigma = np.linalg.inv(found)
    assert abs(np.trace(sigma) - 1) < 1e-9 and np.linalg.eigvalsh(sigma).min() > 0


def test_no_weight_is_training_alone() -> None:
    world = make_world(0, model=BnMlp)
    alone = ref_local(world, lr=0.1, match_participation=True).kept
    for i, own in kept(run(world, fedmtl(lr=0.1, lam=0.0), loop)).items():
        close(own, alone[i])


def test_a_new_client_answers_with_what_the_others_say() -> None:
    """With the pull to the mean that is the mean of the others."""
    world = make_world(0, rounds=2)
    world = replace(world, turns=[replace(t, ids=[0, 2, 3, 4]) for t in world.turns])
    fed = run(world, fedmtl(lr=0.1, lam=0.4, relation="mean"), loop)
    own = kept(fed)
    mean = {k: np.mean([own[j][k].numpy() for j in (0, 2, 3, 4)], axis=0) for k in world.first}
    np.testing.assert_allclose(answer(fed, world, 1), Mlp.logits(mean, world.x[1]), rtol=0, atol=1e-9)


def test_the_penalty_is_of_differences_alone() -> None:
    rng, world = np.random.default_rng(0), make_world(0)
    models = [{k: v + rng.normal(size=v.shape) for k, v in world.first.items()} for _ in range(3)]
    moved = [{k: v + 3.0 for k, v in m.items()} for m in models]
    assert penalty(world, [world.first] * 3) < 1e-20
    assert abs(penalty(world, models) - penalty(world, moved)) < 1e-9 * penalty(world, models)
    assert torch.tensor(penalty(world, models)) > 0
