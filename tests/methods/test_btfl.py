"""BTFL against its reference, and the limits of its mixture."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from bridge import close, draws, judged, kept, recorded, run
from reference.btfl import answers, external, likelihood
from reference.btfl import btfl as ref_btfl
from reference.model import BnMlp, Mlp, Model, ReluMlp, softmax
from reference.world import late_world, make_world

from weft.core.turn import Execute
from weft.executors import Batched, loop
from weft.local import SGD
from weft.methods.btfl import btfl, foreign
from weft.methods.fedavg import fedavg


@pytest.mark.parametrize(
    ("execute", "seed", "net", "Q", "options"),
    [
        (loop, 0, ReluMlp, 2, {"kappa": 4.0, "U": 5.0, "stream": 3}),
        (Batched(), 1, Mlp, 3, {"kappa": 2.0, "U": 2.5, "stream": 5}),
        (Batched(2), 2, BnMlp, 16, {"kappa": 1.0, "U": 4.0, "stream": 2}),
    ],
    ids=["loop", "batched", "chunked-norm"],
)
def test_equals_the_reference(execute: Execute, seed: int, net: Model, Q: int, options: dict[str, Any]) -> None:
    """Client 8 is alone in its only round; everybody answers to two streams in turn."""
    world = late_world(seed, net, ("local", "head"))
    execute, sent = recorded(execute)
    method = btfl(SGD(0.1, momentum=0.5), Q=Q, sigma=0.5, **options)
    own = kept(run(replace(world, turns=[]), method, loop))
    fed = run(world, method, execute)
    common, pairs, theirs = ref_btfl(
        world, {i: one.head["own"].numpy() for i, one in own.items()}, lr=0.1, momentum=0.5, Q=Q, sigma=0.5
    )
    assert sent.keys() == theirs.keys()
    for at, (change, seen) in theirs.items():
        close(sent[at].model, change)
        close(sent[at].seen, {"mean": seen})
    close(fed.server.model, common)
    assert pairs.keys() == {*range(9), 10}
    own = kept(fed)
    for i, pair in pairs.items():
        close(own[i].head, {"own": pair.head})
        close(own[i].model, pair.model)
        saw = {"own": pair.own, "h_l": pair.h_l, "h_g": pair.h_g, "alone": float(pair.others is None)}
        close({k: own[i].seen[k] for k in saw}, saw)
        if pair.others is not None:
            close(own[i].seen, {**saw, "others": pair.others})
    x, one = np.concatenate(world.x), draws(world)
    for rows in (one, [r[::-1] for r in one], one):
        said, shared = judged(fed, world, rows), judged(fed, world, rows, "global")
        for i, at in enumerate(rows):
            np.testing.assert_allclose(shared[i], softmax(net.logits(common, x[at])), rtol=0, atol=1e-9)
            expected, e = net.logits(common, x[at]), None
            if i in pairs:
                expected, e = answers(world, pairs[i], x[at], Q=Q, **options)
            np.testing.assert_allclose(said[i], softmax(expected), rtol=0, atol=1e-9)
            assert e is None or (set(e) == {0.5} if i == 8 else len(set(e.round(9))) > 2)


def test_the_common_model_without_penalty_is_fedavgs() -> None:
    world = make_world(0, rounds=3, phases=("local", "head"))
    ours, theirs = run(world, btfl(lr=0.2, sigma=0.0), loop), run(world, fedavg(lr=0.2), loop)
    close(ours.server.model, {k: v.numpy() for k, v in theirs.server.model.items()}, 0)


def test_the_share_follows_its_two_sources() -> None:
    """It falls with lambda and rises with alpha / (alpha + beta); at Beta(1, 1) and lambda = 1 it is about a half."""
    one, ratios = torch.tensor(1.0, dtype=torch.float64), torch.tensor([0.2, 0.7, 1.0, 3.0], dtype=torch.float64)
    e = foreign(one, one, ratios)
    assert (e.diff() < 0).all() and abs(float(e[2]) - 0.49) < 1e-3
    rising = [float(foreign(a * one, (6 - a) * one, ratios[1:2])) for a in (1, 2, 3, 5)]
    assert rising == sorted(rising) and rising[0] < rising[-1]
    for a, b in ((1.0, 1.0), (3.0, 1.5)):
        for r in ratios.tolist():
            ours = float(foreign(a * one, b * one, torch.tensor([r], dtype=torch.float64)))
            assert abs(ours - external(a, b, r)) < 1e-12
    assert likelihood(1.0, 4.0) == 1.0 and likelihood(2.0, 4.0) == pytest.approx(1 / likelihood(0.5, 4.0))
