"""FedFomo against its reference, and which models are sent to whom."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from bridge import answer, close, kept, net_of, run
from reference.descent import mean
from reference.fedfomo import Choose, combined, greedy, weights
from reference.fedfomo import fedfomo as ref_fedfomo
from reference.model import BnMlp, Mlp, Model
from reference.world import World, make_world

from weft.core import Round
from weft.core.turn import Execute
from weft.executors import Batched, loop
from weft.methods.fedfomo import Fomo, chosen, fedfomo


def held_out(seed: int, net: Model, rounds: int = 5) -> tuple[World, dict[int, Any]]:
    """A federation in which every client trains on four fifths of its examples, and client 4 never comes."""
    world = make_world(seed, rounds=rounds, model=net)
    least, rng = 2 if net is BnMlp else 1, np.random.default_rng(seed)
    held = {i: rng.permutation(len(y))[: max(1, len(y) // 5)] for i, y in enumerate(world.y)}
    for turn in world.turns:
        turn.ids = [i for i in turn.ids if i != 4]
        for i, phases in turn.batches.items():
            rest = [b[~np.isin(b, held[i])] for b in phases["local"]]
            turn.batches[i] = {"local": [b for b in rest if len(b) >= least], "held": [held[i]]}
    return world, held


def state_of(affinity: Any, uploaded: list[int]) -> Fomo:
    n = len(affinity)
    seen = torch.zeros(n)
    seen[uploaded] = 1
    return Fomo({"x": torch.zeros(n, 1)}, {"seen": seen}, torch.as_tensor(affinity))


def as_drawn(world: World, epsilon: float, decay: float) -> Choose:
    """The choice that the method makes of the same affinities."""

    def choose(r: int, affinity: Any, client: int, uploaded: list[int], most: int) -> list[int]:
        rnd = Round(r, torch.tensor([client]), world.population, net_of(world))
        slots, filled = chosen(state_of(affinity, uploaded), rnd, most, epsilon - decay * (r - 1))
        return [int(s) for s, f in zip(slots[0], filled[0], strict=True) if f]

    return choose


@pytest.mark.parametrize("M", [2, 5])
@pytest.mark.parametrize(
    ("execute", "seed", "net"),
    [(loop, 0, Mlp), (Batched(), 1, Mlp), (Batched(2), 2, BnMlp)],
    ids=["loop", "all", "two"],
)
def test_equals_the_reference(M: int, execute: Execute, seed: int, net: Model) -> None:
    world, held = held_out(seed, net)
    choose = as_drawn(world, 0.3, 0.05) if M == 2 else greedy
    out = ref_fedfomo(world, lr=0.3, M=M, validation=held, choose=choose)
    fed = run(world, fedfomo(lr=0.3, M=M), execute)
    np.testing.assert_allclose(fed.server.affinity.numpy(), out.extra["affinity"], rtol=0, atol=1e-9)
    assert (out.extra["affinity"] > 0).any() and (out.extra["affinity"] < 0).any()
    own = kept(fed)
    for i, (before, trained) in out.kept.items():
        close(own[i].before, before)
        close(own[i].model, trained)
        if i in out.extra["latest"]:
            close({k: v[i] for k, v in fed.server.models.items()}, out.extra["latest"][i])
    others = mean(list(out.extra["latest"].values()))
    for i, model in ((0, out.kept[0][1]), (4, others)):
        np.testing.assert_allclose(answer(fed, world, i), world.model.logits(model, world.x[i]), rtol=0, atol=1e-9)


def test_only_better_models_enter() -> None:
    """One better model is taken whole, worse ones and the model itself are not."""
    world, held = held_out(0, Mlp, rounds=1)
    start, rows = world.first, held[0]
    g = Mlp.grad(start, world.x[0][rows], world.y[0][rows])
    down, up = ({k: start[k] - s * g[k] for k in start} for s in (0.1, -0.1))
    w = weights(world, 0, start, [down, up, start], rows)
    assert w[0] > 0 > w[1] and w[2] == 0
    mixed = combined(world, start, [down, up, start], w)
    assert all(np.allclose(mixed[k], down[k], rtol=0, atol=1e-15) for k in start)
    assert combined(world, start, [up, start], w[1:]) is start


def test_greedy_and_random_slots() -> None:
    n, ids = 6, torch.tensor([1, 4])
    affinity = np.random.default_rng(0).normal(size=(n, n))
    rnd, state = Round(3, ids, n, None), state_of(affinity, [0, 1, 2, 4, 5])  # type: ignore[arg-type]
    slots, filled = chosen(state, rnd, 2, 0.0)
    assert filled.all()
    for place, i in enumerate(ids.tolist()):
        others = [j for j in (0, 1, 2, 4, 5) if j != i]
        assert slots[place].tolist() == sorted(others, key=lambda j: -affinity[i, j])[:2]
    drawn = [chosen(state, rnd._replace(number=r), 1, 1.0)[0][0, 0].item() for r in range(400)]
    count = np.bincount(drawn, minlength=n)
    assert count[[1, 3]].sum() == 0 and all(60 < c < 140 for c in count[[0, 2, 4, 5]])
    slots, filled = chosen(state_of(affinity, [2]), rnd, 5, 0.3)
    assert filled.sum(1).tolist() == [1, 1] and (slots[filled] == 2).all()
