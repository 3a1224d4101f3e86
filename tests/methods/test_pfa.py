"""PFA against its reference, and what its groups find."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from bridge import close, draws, examples_of, judged, net_of, recorded, run, turn_of
from reference.linkage import clusters as ref_clusters
from reference.model import BnMlp, Mlp, Model, ReluMlp, softmax
from reference.pfa import pfa as ref_pfa
from reference.world import World, late_world, make_world
from torch.utils._pytree import tree_map

from weft.core import Data
from weft.core.turn import Execute
from weft.executors import Batched, loop
from weft.local import SGD
from weft.methods.fedavg import fedavg
from weft.methods.pfa import pfa, sparsity
from weft.server.linkage import clusters

EPS = 0.4  # the toy's activations are tanh


def parts(labels: torch.Tensor) -> set[frozenset[int]]:
    return {frozenset(torch.nonzero(labels == c)[:, 0].tolist()) for c in labels.unique()}


@pytest.mark.parametrize("seed", range(8))
def test_linkage_is_its_definition(seed: int) -> None:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(9, 2)) + 6 * rng.integers(0, 3, (9, 1))
    d = np.linalg.norm(x[:, None] - x[None], axis=2)
    for gap, count in ((0.0, 0), (0.5, 0), (100.0, 0), (0.0, 1), (0.0, 4), (0.0, 9)):
        assert parts(clusters(torch.from_numpy(d), gap, count)) == set(map(frozenset, ref_clusters(d, gap, count)))


def test_linkage_at_its_limits() -> None:
    assert clusters(torch.zeros(1, 1)).tolist() == [0] and clusters(torch.zeros(4, 4)).tolist() == [0] * 4
    assert clusters(torch.ones(2, 2)).tolist() == [0, 0] and clusters(torch.ones(2, 2), count=5).tolist() == [0, 1]


@pytest.mark.parametrize("groups", [0, 3])
@pytest.mark.parametrize(
    ("execute", "seed", "net", "eps"),
    [(loop, 7, ReluMlp, 0.0), (Batched(), 1, Mlp, EPS), (Batched(2), 4, BnMlp, EPS)],
    ids=["loop", "batched", "chunked-norm"],
)
def test_equals_the_reference(groups: int, execute: Execute, seed: int, net: Model, eps: float) -> None:
    world = late_world(seed, net)
    execute, sent = recorded(execute)
    fed = run(world, pfa(SGD(0.2, momentum=0.5), warm=2, groups=groups, eps=eps), execute)
    ref = ref_pfa(world, lr=0.2, momentum=0.5, warm=2, groups=groups, eps=eps)
    assert 1 < len(ref.members) < 6 and sum(map(len, ref.members)) == 9
    assert sent.keys() == ref.sent.keys()
    for at, (change, s) in ref.sent.items():
        close(sent[at].model, change)
        close(sent[at].sparsity, {"zero": s})
    member, models = fed.server.member, fed.server.model
    assert not member[9:].any() and parts(member[:9]) == set(map(frozenset, ref.members))
    close({k: v[0] for k, v in models.items()}, ref.common)
    for own, model in zip(ref.members, ref.models, strict=True):
        close({k: v[member[min(own)]] for k, v in models.items()}, model)
        for i, s in own.items():
            np.testing.assert_allclose(fed.server.sparsity[i], s, rtol=0, atol=1e-9)
    rows = draws(world)
    for i, shares in enumerate(judged(fed, world, rows)):
        expected = softmax(ref.answer(i, np.concatenate(world.x)[rows[i]]))
        np.testing.assert_allclose(shares, expected, rtol=0, atol=1e-9)


def test_before_there_are_groups_all_answer_with_the_common_model() -> None:
    world = late_world(0)
    world = replace(world, turns=world.turns[:3])
    fed, ref, rows = run(world, pfa(SGD(0.2), warm=2), loop), ref_pfa(world, lr=0.2, warm=2), draws(world)
    for at, shares in zip(rows, judged(fed, world, rows), strict=True):
        np.testing.assert_allclose(
            shares, softmax(Mlp.logits(ref.common, np.concatenate(world.x)[at])), rtol=0, atol=1e-9
        )


def test_one_group_is_fedavg_and_single_ones_train_alone() -> None:
    world = make_world(0, rounds=4)
    everybody = list(range(world.population))
    world = replace(world, turns=[replace(t, ids=everybody) for t in world.turns])
    one, same = run(world, pfa(SGD(0.2), warm=0, groups=1), loop), run(world, fedavg(lr=0.2), loop)
    close({k: v[1] for k, v in one.server.model.items()}, {k: v.numpy() for k, v in same.server.model.items()}, 0)
    alone = run(world, pfa(SGD(0.2), warm=0, groups=9), loop).server
    mine = replace(world, turns=[replace(t, ids=[2]) for t in world.turns])
    lonely = run(mine, fedavg(lr=0.2), loop).server.model
    at = int(alone.member[2])
    close({k: v[at] for k, v in alone.model.items()}, {k: v.numpy() for k, v in lonely.items()}, 1e-12)


def of(world: World, client: int, fill: int = 0) -> torch.Tensor:
    """s of a client, with so many rows of padding."""
    net, ids = net_of(world), torch.tensor([client])
    turn = turn_of(world, world.turns[0].batches, ids, {}, torch.zeros_like(ids))
    turn = turn._replace(rows=torch.nn.functional.pad(turn.rows, (0, fill), value=-1))
    data = Data(examples_of(world), tree_map(lambda x: x[0], turn))
    return sparsity(net, {k: torch.from_numpy(v) for k, v in world.first.items()}, data, EPS)


def test_sparsity_is_a_share_that_neither_order_nor_padding_changes() -> None:
    world = make_world(0)
    order = np.random.default_rng(0).permutation(len(world.y[0]))
    turned = replace(world, x=[world.x[0][order], *world.x[1:]], y=[world.y[0][order], *world.y[1:]])
    s = of(world, 0)
    assert ((s >= 0) & (s <= 1)).all() and 0 < s.sum() < len(s)
    assert torch.allclose(s, of(turned, 0), atol=1e-12) and torch.allclose(s, of(world, 0, fill=3), atol=1e-12)


def test_domains_are_found() -> None:
    """Odd clients have their features turned round: two groups, exactly."""
    world = make_world(5, clients=8, rounds=3)
    rng = np.random.default_rng(0)
    x = [rng.normal(size=(40, 3)) + (4.0 if i % 2 else -4.0) * np.array([1.0, 0.0, 0.0]) for i in range(8)]
    first = {**world.first, "body.bias": np.array([-4.0, 4.0, 0.0, 0.0]) * world.first["body.weight"][:, 0]}
    y = [rng.integers(0, 4, 40) for _ in range(8)]
    everybody = [replace(t, ids=list(range(8))) for t in world.turns]
    world = replace(world, x=x, y=y, first=first, turns=everybody)
    member = run(world, pfa(SGD(0.01), warm=0, eps=EPS), Batched()).server.member
    assert parts(member) == {frozenset(range(0, 8, 2)), frozenset(range(1, 8, 2))}
