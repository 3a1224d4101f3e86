"""Marsit against its reference, with the numbers that the server draws; and what its merge expects."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from bridge import close, kept, net_of, run
from reference.marsit import marsit as ref_marsit
from reference.marsit import ring
from reference.model import BnMlp, Mlp, Model
from reference.world import World, make_world

from weft.core.stream import code, fold, uniform
from weft.core.turn import Execute
from weft.executors import Batched, loop
from weft.methods.fedavg import fedavg
from weft.methods.marsit import marsit, merged

RUNS = [
    pytest.param(loop, 0, Mlp, id="loop"),
    pytest.param(Batched(), 1, Mlp, id="batched"),
    pytest.param(Batched(2), 2, BnMlp, id="chunked-norm"),
]


def world_of(seed: int, model: Model = Mlp) -> World:
    """Tensors in the order of the network, which is that of the ring."""
    world = make_world(seed, rounds=5, model=model)
    return replace(world, first={k: world.first[k] for k in net_of(world).init(0)})


def drawn(world: World) -> Any:
    """The uniform numbers of a hop, for all tensors end to end; the bridge's rounds have seed 0."""
    sizes = [world.first[k].size for k in world.model.trainable(world.first)]

    def draw(number: int, hop: int) -> Any:
        key, parts, start = fold(fold(torch.tensor(0), code("marsit")), number + 1), [], 0
        for size in sizes:
            parts.append(uniform(fold(fold(key, start), hop), (size,), torch.float64).numpy())
            start += size
        return np.concatenate(parts)

    return draw


@pytest.mark.parametrize("every", [1, 2, 100])
@pytest.mark.parametrize(("execute", "seed", "net"), RUNS)
def test_equals_the_reference(every: int, execute: Execute, seed: int, net: Model) -> None:
    world = world_of(seed, net)
    fed = run(world, marsit(lr=0.1, eta_s=0.05, every=every), execute)
    out = ref_marsit(world, drawn(world), lr=0.1, every=every, eta=0.05)
    close(fed.server.model, out.model or {})
    own = kept(fed)
    for i, c in out.kept.items():
        close(own[i], c)


def test_exact_in_every_round_is_fedavg() -> None:
    world = world_of(0, BnMlp)
    same = run(world, fedavg(lr=0.1), loop).server.model
    close(run(world, marsit(lr=0.1, every=1), loop).server.model, {k: v.numpy() for k, v in same.items()}, 1e-12)


@pytest.mark.parametrize("merge", ["ours", "reference"])
@pytest.mark.parametrize("weights", [[1.0, 1.0, 1.0, 1.0], [3.0, 1.0, 5.0, 2.0]])
def test_the_merge_is_unbiased(merge: str, weights: list[float]) -> None:
    """The share of ones is the weighted share of positive signs, whatever the client at which the ring starts."""
    n, w = 40000, np.array(weights)
    signs = np.array([True, False, False, True])
    bits, start = np.repeat(signs[:, None], n, 1), np.arange(n) % 4
    if merge == "ours":
        found = merged(torch.tensor(bits), torch.tensor(w), torch.tensor(start), torch.tensor(7)).numpy()
    else:
        rng = np.random.default_rng(0)
        found = ring(bits, w, start, lambda hop: rng.random(n))
    expected = w[signs].sum() / w.sum()
    for first in range(4):
        part = found[start == first]
        assert abs(part.mean() - expected) < 4 * np.sqrt(expected * (1 - expected) / len(part))
    same = np.ones((4, 8), dtype=bool)
    assert merged(torch.tensor(same), torch.tensor(w), torch.zeros(8, dtype=torch.int64), torch.tensor(1)).all()
