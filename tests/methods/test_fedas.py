"""FedAS against its reference, and what its alignment does."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from bridge import answer, close, kept, run
from reference.fedas import align, class_means, misfit
from reference.fedas import fedas as ref_fedas
from reference.fedper import joined
from reference.model import BnMlp, Mlp, Model
from reference.world import World, make_world

from weft.core.turn import Execute
from weft.executors import Batched, loop
from weft.methods.fedas import fedas


def world_of(seed: int, net: Model = Mlp) -> World:
    """Client 1 never comes."""
    world = make_world(seed, rounds=4, phases=("local", "align", "fisher"), model=net)
    for turn in world.turns:
        turn.ids = [i for i in turn.ids if i != 1]
    return world


@pytest.mark.parametrize(
    ("execute", "seed", "net"),
    [(loop, 0, Mlp), (Batched(), 1, Mlp), (Batched(2), 2, BnMlp)],
    ids=["loop", "all", "two"],
)
def test_equals_the_reference(execute: Execute, seed: int, net: Model) -> None:
    world = world_of(seed, net)
    fed = run(world, fedas(lr=0.1, lr_align=0.4), execute)
    out = ref_fedas(world, lr=0.1, lr_align=0.4)
    close(fed.server.model, out.model or {})
    own = kept(fed)
    for i, tree in out.kept.items():
        close(own[i], tree)
    heads = {k: v for k, v in world.first.items() if k.startswith("head")}
    for i, tree in ((0, out.kept[0]), (1, joined(world, out.model or {}, heads))):
        np.testing.assert_allclose(answer(fed, world, i), net.logits(tree, world.x[i]), rtol=0, atol=1e-9)


def test_alignment_lowers_the_misfit_and_leaves_the_head() -> None:
    world = world_of(0)
    rng = np.random.default_rng(0)
    received = {k: v + rng.normal(0, 0.3, v.shape) for k, v in world.first.items() if not k.startswith("head")}
    means, everything = class_means(world, 0, world.first), np.arange(len(world.y[0]))

    def loss(p: dict[str, np.ndarray]) -> float:  # type: ignore[type-arg]
        return float(misfit(torch.tensor(Mlp.features({**world.first, **p}, world.x[0])), world.y[0], means))

    aligned = align(world, 0, received, world.first, [everything] * 5, 0.1)
    assert loss(aligned) < loss(received) and set(aligned) == set(received)


def test_an_aligned_body_with_one_example_a_class_stays() -> None:
    """The old body fits its class means exactly then; with more examples it has a slope."""
    world = world_of(0)
    world.x[0], world.y[0] = world.x[0][:2], np.array([0, 1])
    body = {k: v for k, v in world.first.items() if not k.startswith("head")}
    still = align(world, 0, body, world.first, [np.array([0, 1])], 0.5)
    assert all(np.allclose(still[k], body[k], rtol=0, atol=1e-15) for k in body)
    moved = align(world, 2, body, world.first, [np.arange(len(world.y[2]))], 0.5)
    assert not np.allclose(moved["body.weight"], body["body.weight"])


def test_without_alignment_and_training_nothing_moves() -> None:
    fed = run(world_of(0), fedas(lr=0.0, lr_align=0.0), loop)
    close(fed.server.model, {k: v for k, v in world_of(0).first.items() if not k.startswith("head")})
