"""FedCAC against its reference, and its two ends."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from bridge import answer, close, kept, run
from reference.fedavg import fedavg as ref_fedavg
from reference.fedcac import critical, overlaps, partners
from reference.fedcac import fedcac as ref_fedcac
from reference.local import local as ref_local
from reference.model import BnMlp, Mlp, Model
from reference.world import make_world

from weft.core import Round
from weft.core.turn import Execute
from weft.executors import Batched, loop
from weft.local import SGD
from weft.methods.fedcac import fedcac, groups, sensitive

HEAVY: dict[str, Any] = {"momentum": 0.9, "weight_decay": 0.01}


@pytest.mark.parametrize(("tau", "beta"), [(0.5, 6), (0.3, 2), (1.0, 9)])
@pytest.mark.parametrize(
    ("execute", "seed", "net"),
    [(loop, 0, Mlp), (Batched(), 1, Mlp), (Batched(2), 2, BnMlp)],
    ids=["loop", "all", "two"],
)
def test_equals_the_reference(tau: float, beta: int, execute: Execute, seed: int, net: Model) -> None:
    world = make_world(seed, rounds=4, model=net)
    for turn in world.turns:
        turn.ids = [i for i in turn.ids if i != 1]
    fed = run(world, fedcac(SGD(0.1, **HEAVY), tau=tau, beta=beta), execute)
    out = ref_fedcac(world, lr=0.1, tau=tau, beta=beta, **HEAVY)
    close(fed.server.model, out.model or {})
    names = net.trainable(world.first)
    for i, (mask, custom) in out.kept.items():
        close({k: v[i].double() for k, v in fed.server.critical.items()}, mask)
        close({k: v[i] for k, v in fed.server.custom.items()}, {k: custom[k] for k in names})
    for i, tree in out.extra["personal"].items():
        np.testing.assert_allclose(answer(fed, world, i), net.logits(tree, world.x[i]), rtol=0, atol=1e-9)


def test_all_critical_and_no_group_is_local_training() -> None:
    """From the second round on with beta = 1: in the first all overlap alike, so all are one group."""
    world = make_world(0, rounds=4)
    for turn in world.turns:
        turn.ids = list(range(world.population))
    method = fedcac(SGD(0.1), tau=1.0, beta=1)
    fed = run(world, method, loop)
    custom = fed.server.custom
    world.turns = world.turns[:1]
    start = run(world, method, loop)
    sent = method.send(start.server, Round(2, torch.arange(5), 5, start.net)).model
    for i in range(5):
        alone = make_world(0, rounds=4)
        alone.first, alone.turns = {k: v[i].numpy() for k, v in sent.items()}, alone.turns[1:]
        for turn in alone.turns:
            turn.ids = [i]
        close({k: v[i] for k, v in custom.items()}, ref_local(alone, lr=0.1).kept[i])


def test_nothing_critical_is_fedavg() -> None:
    world = make_world(1, rounds=3)
    fed = run(world, fedcac(SGD(0.1), tau=0.0), loop)
    close(fed.server.model, ref_fedavg(world, lr=0.1).model or {})
    assert not any(v.any() for v in fed.server.critical.values()) and kept(fed)[0] == ()


def test_masks() -> None:
    rng = np.random.default_rng(0)
    new, old = rng.normal(size=(5, 3)), rng.normal(size=(5, 3))
    for tau in (0.0, 0.05, 0.4, 1.0):
        ours = sensitive(torch.tensor(new), torch.tensor(old), tau).numpy()
        assert ours.sum() == int(tau * 15) and (ours == critical(new, old, tau)).all()
    few = old.copy()
    few[0, 0] += 1.0  # all but one stand still: ties at 0 are no reason to be critical
    for tau in (0.2, 1.0):
        mask = sensitive(torch.tensor(few), torch.tensor(old), tau).numpy()
        assert mask.sum() == 1 and mask[0, 0] and (mask == critical(few, old, tau)).all()


def test_groups_shrink() -> None:
    rng = np.random.default_rng(3)
    masks = [{"w": critical(rng.normal(size=40), rng.normal(size=40), 0.5)} for _ in range(5)]
    stack = {"w": torch.tensor(np.stack([m["w"] for m in masks])) > 0}
    sizes = []
    for t in range(8):
        want = partners(overlaps(masks), t, 6)
        share = groups(stack, (t + 1) / 6).numpy()
        assert [np.flatnonzero(row).tolist() for row in share] == want
        assert all(np.allclose(row[row > 0], 1 / (row > 0).sum()) for row in share)
        sizes.append(sum(map(len, want)))
    assert groups({"w": stack["w"][:1]}, 0.1).tolist() == [[1.0]]
    assert sizes == sorted(sizes, reverse=True) and sizes[0] > sizes[5] > 5 == sizes[6] == sizes[7]
