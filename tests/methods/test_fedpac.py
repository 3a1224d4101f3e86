"""FedPAC against its reference, and the mixtures of classifiers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from bridge import answer, close, kept, run
from reference.descent import mean
from reference.fedpac import fedpac as ref_fedpac
from reference.fedpac import mixing, on_simplex, statistics
from reference.fedper import joined
from reference.model import BnMlp, Mlp, Model
from reference.world import make_world

from weft.core.turn import Execute
from weft.executors import Batched, loop
from weft.local import SGD
from weft.methods.fedpac import fedpac, mixtures
from weft.server.simplex import best_mixture

HEAVY: dict[str, Any] = {"momentum": 0.5, "weight_decay": 0.01}


@pytest.mark.parametrize(
    ("execute", "seed", "net"),
    [(loop, 0, Mlp), (Batched(), 1, Mlp), (Batched(2), 2, BnMlp)],
    ids=["loop", "all", "two"],
)
def test_equals_the_reference(execute: Execute, seed: int, net: Model) -> None:
    world = make_world(seed, rounds=4, phases=("local", "head"), model=net)
    for turn in world.turns:
        turn.ids = [i for i in turn.ids if i != 1]
    fed = run(world, fedpac(SGD(0.1, **HEAVY), lam=2.0, lr_head=0.2), execute)
    out = ref_fedpac(world, lr=0.1, lam=2.0, lr_head=0.2, **HEAVY)
    assert any((a > 0).sum() > 1 for a in out.extra["mixes"]), "nobody mixes"
    close(fed.server.model, out.model or {})
    close(fed.server.protos, {"mean": out.extra["centroids"], "known": out.extra["known"]})
    own = kept(fed)
    for i, head in out.kept.items():
        close(own[i], head)
    met = sorted({i for turn in world.turns for i in turn.ids})
    for i, head in ((0, out.kept[0]), (1, mean([out.kept[j] for j in met]))):
        model = joined(world, out.model or {}, head)
        np.testing.assert_allclose(answer(fed, world, i), net.logits(model, world.x[i]), rtol=0, atol=1e-9)


@pytest.mark.parametrize("seed", range(6))
def test_the_programme_is_solved(seed: int) -> None:
    """As by trying all sets, and no entry can do better."""
    rng = np.random.default_rng(seed)
    half = rng.normal(size=(6, 4))
    form = half @ half.T + np.diag(rng.uniform(1e-3, 1.0, 6))
    a = best_mixture(form)
    np.testing.assert_allclose(a, on_simplex(form), rtol=0, atol=1e-9)
    slope = form @ a
    assert abs(a.sum() - 1) < 1e-12 and (a >= 0).all() and (slope >= a @ form @ a - 1e-9).all()


def test_mixtures_at_their_limits() -> None:
    h, v = torch.zeros(3, 2, 2, dtype=torch.float64), torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64)
    like = np.array([4, 2, 1]) / 7  # all alike: by 1 / V
    np.testing.assert_allclose(mixtures(h, v).numpy(), np.stack([like] * 3), rtol=0, atol=1e-12)
    far = h.clone()
    far[2] += 1e3  # one has nothing to do with the others
    alpha = mixtures(far, v).numpy()
    assert alpha[0, 2] == 0 and alpha[2, 2] == 1 and abs(alpha[1, 0] - 2 / 3) < 1e-9
    known = [np.asarray(x) for x in far.numpy()]
    for i in range(3):
        np.testing.assert_allclose(alpha[i], mixing(known, v.tolist(), i), rtol=0, atol=1e-9)


def test_one_example_does_not_look_free_of_noise() -> None:
    h, v = torch.randn(2, 3, 2, generator=torch.Generator().manual_seed(0)), torch.tensor([0.0, 1e-5])
    alpha = mixtures(h * 1e-4, v)
    assert alpha.isfinite().all() and 0.9 < alpha[0, 0] < 0.999


def test_statistics_of_a_client() -> None:
    """h sums up to the mean feature, and V is halved when every example is there twice."""
    world = make_world(0)
    h, v, _, _ = statistics(world, 0, world.first)
    np.testing.assert_allclose(h.sum(0), Mlp.features(world.first, world.x[0]).mean(0), rtol=0, atol=1e-12)
    world.x[0], world.y[0] = np.concatenate([world.x[0]] * 2), np.concatenate([world.y[0]] * 2)
    assert 0 < v == pytest.approx(2 * statistics(world, 0, world.first)[1])
