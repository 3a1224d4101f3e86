"""DistFL against its reference, and what its clusters find."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from bridge import answer, close, net_of, run
from reference.distfl import apart as ref_apart
from reference.distfl import distfl as ref_distfl
from reference.model import BnMlp, Mlp, Model
from reference.world import Turn, World, epoch, make_world

from weft.core.turn import Execute
from weft.executors import Batched, loop
from weft.methods.distfl import apart, distfl, noise
from weft.methods.fedavg import fedavg

PROBES = 5


def parts(member: torch.Tensor) -> set[frozenset[int]]:
    return {frozenset(torch.nonzero(member == c)[:, 0].tolist()) for c in member.unique() if c}


@pytest.mark.parametrize(
    ("execute", "seed", "net", "refine", "outlier"),
    [(loop, 0, Mlp, 4, 1.0), (Batched(), 1, Mlp, 4, 0.0), (Batched(2), 2, BnMlp, 0, 1.0)],
    ids=["loop", "outliers", "chunked-norm"],
)
def test_equals_the_reference(execute: Execute, seed: int, net: Model, refine: int, outlier: float) -> None:
    """Client 1 never comes, and another one comes late."""
    world = make_world(seed, clients=7, rounds=5, model=net)
    turns = [replace(t, ids=[i for i in t.ids if i != 1 and (i != 3 or n > 2)]) for n, t in enumerate(world.turns)]
    world = replace(world, turns=turns)
    options = {"warm": 1, "gap_min": 0.0, "outlier": outlier, "tau": 0.7, "refine": refine}
    fed = run(world, distfl(lr=0.2, probes=PROBES, **options), execute)
    x = noise(net_of(world), PROBES * 4, torch.zeros((), dtype=torch.float64)).numpy()
    common, models, found, known = ref_distfl(world, x, lr=0.2, **options)
    assert len(models) > 1 and any(3 in g for g in found)
    close({k: v[0] for k, v in fed.server.model.items()}, common)
    for i, (p, rows) in known.items():
        np.testing.assert_allclose(fed.server.knowledge[i].numpy(), np.stack([p, *rows]), rtol=0, atol=1e-9)
    assert parts(fed.server.member) == set(map(frozenset, found)) and fed.server.member[1] == 0
    for g, model in zip(found, models, strict=True):
        close({k: v[int(fed.server.member[min(g)])] for k, v in fed.server.model.items()}, model)
    for i in range(world.population):
        own = next((m for g, m in zip(found, models, strict=True) if i in g), common)
        np.testing.assert_allclose(answer(fed, world, i), net.logits(own, world.x[i]), rtol=0, atol=1e-9)


def test_distance() -> None:
    rng = np.random.default_rng(0)
    k = torch.from_numpy(rng.dirichlet(np.ones(4), (6, 5)))
    k[0, 0] = torch.tensor([1.0, 0, 0, 0])
    k[1, 0] = torch.tensor([0.0, 1, 0, 0])
    d = apart(k[:, None], k[None])
    assert torch.equal(d, d.T) and (d.diagonal() < 1e-7).all() and ((d >= 0) & (d <= 2)).all()
    for i in range(6):
        for j in range(6):
            theirs = ref_apart((k[i, 0].numpy(), k[i, 1:].numpy()), (k[j, 0].numpy(), k[j, 1:].numpy()))
            assert abs(float(d[i, j]) - theirs) < 1e-7


def worlds(labels: list[list[int]], flipped: tuple[int, ...] = (), steps: int = 12) -> World:
    """Clients with these labels, everybody in every round; at some, labels are another class's."""
    rng = np.random.default_rng(0)
    centres = 4 * np.array([[1.0, 0, 0], [0, 1, 0], [0, 0, 1], [-1, -1, -1]])
    y = [rng.choice(own, 60) for own in labels]
    x = [centres[v] + rng.normal(size=(60, 3)) for v in y]
    y = [(v + 1) % 4 if i in flipped else v for i, v in enumerate(y)]
    ids = list(range(len(labels)))
    turns = [Turn(ids, {i: {"local": [b for _ in range(steps) for b in epoch(rng, 60, 20)]} for i in ids})] * 3
    return World(x, y, make_world(0).first, turns, len(ids))


def test_alike_clients_are_one_cluster_and_fedavg() -> None:
    world = worlds([[0, 1, 2, 3]] * 6)
    fed, same = run(world, distfl(lr=0.2), loop), run(world, fedavg(lr=0.2), loop).server.model
    assert fed.server.member.tolist() == [1] * 6
    close({k: v[1] for k, v in fed.server.model.items()}, {k: v.numpy() for k, v in same.items()}, 0)


def test_disjoint_labels_part_and_stay_so() -> None:
    world = worlds([[0, 1], [2, 3]] * 4)
    expected = {frozenset(range(0, 8, 2)), frozenset(range(1, 8, 2))}
    for turns in (world.turns[:2], world.turns):
        assert parts(run(replace(world, turns=turns), distfl(lr=0.2), Batched()).server.member) == expected


def test_flipped_labels_end_alone() -> None:
    world = worlds([[0, 1, 2, 3]] * 6, flipped=(4,))
    assert frozenset({4}) in parts(run(world, distfl(lr=0.2), Batched()).server.member)


def test_the_server_reads_no_examples() -> None:
    """All that clients send is the change of a model, as in FedAvg."""
    ours, theirs = distfl(), fedavg()
    assert set(ours.up) == set(theirs.up) == {"model"} and not ours.needs
    assert ours.client(None, None) == ()  # type: ignore[arg-type]
