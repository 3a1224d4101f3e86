"""DistFL against its reference, and what its clusters find."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from bridge import close, draws, judged, net_of, recorded, run
from reference.distfl import apart as ref_apart
from reference.distfl import distfl as ref_distfl
from reference.model import BnMlp, Mlp, Model, softmax
from reference.world import Turn, World, epoch, late_world, make_world

from weft.core import Input
from weft.core.turn import Execute
from weft.executors import Batched, loop
from weft.local import SGD
from weft.methods.distfl import apart, distfl, noise, refined
from weft.methods.fedavg import fedavg

PROBES = 5


def parts(member: torch.Tensor) -> set[frozenset[int]]:
    return {frozenset(torch.nonzero(member == c)[:, 0].tolist()) for c in member.unique() if c}


@pytest.mark.parametrize(
    ("execute", "seed", "net", "refine", "gap_min", "outlier", "count"),
    [
        (loop, 2, Mlp, 4, 0.02, 1.0, 4),
        (Batched(), 1, Mlp, 2, 2.0, 0.05, 4),
        (Batched(2), 2, BnMlp, 3, 0.0, 1.0, 5),
        (Batched(), 3, Mlp, 0, 2.0, 1.0, 1),
    ],
    ids=["loop", "outliers", "chunked-norm", "one"],
)
def test_equals_the_reference(
    execute: Execute, seed: int, net: Model, refine: int, gap_min: float, outlier: float, count: int
) -> None:
    world = late_world(seed, net)
    execute, sent = recorded(execute)
    options: dict[str, Any] = {"warm": 2, "gap_min": gap_min, "outlier": outlier, "tau": 0.7, "refine": refine}
    fed = run(world, distfl(SGD(0.3, momentum=0.5), probes=PROBES, **options), execute)
    x = noise(net_of(world), PROBES * 4, torch.zeros((), dtype=torch.float64)).numpy()
    ref = ref_distfl(world, x, lr=0.3, momentum=0.5, **options)
    assert len(ref.members) == count and sum(map(len, ref.members)) == 9
    assert sent.keys() == ref.sent.keys()
    for at, change in ref.sent.items():
        close(sent[at].model, change)
    member, models = fed.server.member, fed.server.model
    assert not member[9:].any() and parts(member) == set(map(frozenset, ref.members))
    np.testing.assert_allclose(fed.server.probes, ref.probes, rtol=0, atol=1e-9)
    close({k: v[0] for k, v in models.items()}, ref.common)
    for own, model in zip(ref.members, ref.models, strict=True):
        close({k: v[member[min(own)]] for k, v in models.items()}, model)
        for i, known in own.items():
            np.testing.assert_allclose(fed.server.knowledge[i], known, rtol=0, atol=1e-9)
    rows = draws(world)
    for i, shares in enumerate(judged(fed, world, rows)):
        expected = softmax(net.logits(ref.model_of(i), np.concatenate(world.x)[rows[i]]))
        np.testing.assert_allclose(shares, expected, rtol=0, atol=1e-9)


def test_probes_are_standard_normal_or_any_token() -> None:
    net = net_of(make_world(0))
    x = noise(net, 5000, torch.zeros((), dtype=torch.float64))
    assert x.shape == (5000, 3) and x.mean().abs() < 0.05 and abs(x.std() - 1) < 0.05
    words = noise(replace(net, input=Input((2,), tokens=7)), 500, torch.zeros(()))
    assert words.unique().tolist() == list(range(7))
    assert torch.equal(refined(net, {}, words, 5), words)


def test_distance() -> None:
    rng = np.random.default_rng(0)
    k = torch.from_numpy(rng.dirichlet(np.ones(4), (6, 5)))
    k[0, 0] = torch.tensor([1.0, 0, 0, 0])
    k[1, 0] = torch.tensor([0.0, 1, 0, 0])
    d = apart(k[:, None], k[None])
    assert torch.equal(d, d.T) and (d.diagonal() < 1e-7).all() and ((d >= 0) & (d <= 2)).all()
    for i in range(6):
        for j in range(6):
            theirs = ref_apart(k[i].numpy(), k[j].numpy())
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
    fed, same = run(world, distfl(lr=0.2, probes=20, refine=30), loop), run(world, fedavg(lr=0.2), loop).server.model
    assert fed.server.member.tolist() == [1] * 6
    close({k: v[1] for k, v in fed.server.model.items()}, {k: v.numpy() for k, v in same.items()}, 0)


def test_disjoint_labels_part_and_stay_so() -> None:
    world = worlds([[0, 1], [2, 3]] * 4)
    expected = {frozenset(range(0, 8, 2)), frozenset(range(1, 8, 2))}
    for turns in (world.turns[:2], world.turns):
        assert (
            parts(run(replace(world, turns=turns), distfl(lr=0.2, probes=20, refine=30), Batched()).server.member)
            == expected
        )


def test_flipped_labels_end_alone() -> None:
    world = worlds([[0, 1, 2, 3]] * 6, flipped=(4,))
    assert frozenset({4}) in parts(run(world, distfl(lr=0.2, probes=20, refine=30), Batched()).server.member)


def test_the_server_reads_no_examples() -> None:
    """All that clients send is the change of a model, as in FedAvg."""
    ours, theirs = distfl(), fedavg()
    assert set(ours.up) == set(theirs.up) == {"model"} and not ours.needs
    assert ours.client(None, None) == ()  # type: ignore[arg-type]
