"""FedGen against its reference, whose generator learns by plain autograd, with the numbers that the method draws."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from bridge import close, run
from reference.fedgen import fedgen as ref_fedgen
from reference.model import BnMlp, Mlp, Model
from reference.world import World, make_world

from weft.core import tune
from weft.core.stream import code, fold
from weft.core.turn import Execute
from weft.executors import Batched, loop
from weft.local import Adam
from weft.local.noise import choices, normal
from weft.methods.fedavg import fedavg
from weft.methods.fedgen import fedgen, generator
from weft.server import plain

RUNS = [
    pytest.param(loop, 0, Mlp, id="loop"),
    pytest.param(Batched(), 1, Mlp, id="batched"),
    pytest.param(Batched(2), 2, BnMlp, id="chunked-norm"),
]

NAMES = {"0.weight": "hidden.weight", "3.weight": "out.weight", "3.bias": "out.bias"} | {
    f"1.{k}": f"norm.{k}" for k in ("weight", "bias", "running_mean", "running_var")
}
NOISE, HIDDEN, LABELS, STEPS = 3, 6, 8, 4


def first(world: World) -> dict[str, Any]:
    classes, width = world.first["head.weight"].shape
    tree = generator(classes, width, NOISE, HIDDEN, torch.float64).init(0)
    return {theirs: tree[ours].numpy() for ours, theirs in NAMES.items()}


def pair(key: torch.Tensor, prior: Any, count: int) -> tuple[Any, Any]:
    y = choices(fold(key, code("labels")), torch.tensor(prior), count)
    return y.numpy(), normal(fold(key, code("noise")), (count, NOISE), torch.float64).numpy()


@pytest.mark.parametrize("settings", [{}, {"weight": 10.0, "decay": 0.5, "diversity": 2.0}], ids=str)
@pytest.mark.parametrize(("execute", "seed", "net"), RUNS)
def test_equals_the_reference(settings: Any, execute: Execute, seed: int, net: Model) -> None:
    world = make_world(seed, rounds=4, model=net)
    optimiser = Adam(0.02, weight_decay=0.01)
    sizes: dict[str, Any] = {"noise": NOISE, "hidden": HIDDEN, "labels": LABELS, "steps": STEPS}
    fed = run(world, fedgen(lr=0.05, generator_opt=optimiser, **sizes, **settings), execute)

    def user(number: int, client: int, step: int, prior: Any) -> Any:
        key = fold(fold(torch.tensor(client + 1000 * (number + 1)), code("local")), step)
        return pair(key, prior, len(world.turns[number].batches[client]["local"][step]))

    def server(number: int, step: int, prior: Any) -> Any:
        return pair(fold(fold(fold(torch.tensor(0), code("fedgen")), number + 1), step), prior, LABELS)

    weight, decay = settings.get("weight", 1.0), settings.get("decay", 1.0)
    out = ref_fedgen(
        world,
        first(world),
        user,
        server,
        lr=0.05,
        weight=lambda number: max(1e-4, weight * decay**number) if number else 0.0,
        steps=STEPS,
        lr_generator=0.02,
        eta=settings.get("diversity", 1.0),
    )
    close(fed.server.model, out.model or {})
    close({NAMES[k]: v for k, v in fed.server.generator.items()}, out.extra["generator"])
    counts = fed.server.counts["classes"].numpy()
    np.testing.assert_allclose(counts / counts.sum(), out.extra["prior"])


def test_without_generated_features_it_is_fedavg_with_equal_weights() -> None:
    world = make_world(0, model=BnMlp)
    ours = run(world, fedgen(lr=0.1, weight=0.0), loop).server.model
    same = run(world, tune(fedavg(lr=0.1), "model", reduce=plain), loop).server.model
    close(ours, {k: v.numpy() for k, v in same.items()}, 1e-12)


def test_labels_follow_the_counts() -> None:
    counts = torch.tensor([3.0, 0.0, 6.0, 1.0])
    drawn = choices(torch.tensor(5), counts, 20000)
    share = torch.bincount(drawn, minlength=4) / 20000
    assert share[1] == 0 and (share - counts / 10).abs().max() < 0.015


def test_noise_is_normal() -> None:
    drawn = normal(torch.tensor(5), (20000,), torch.float64)
    assert abs(float(drawn.mean())) < 0.03 and abs(float(drawn.std()) - 1) < 0.03
    assert abs(float((drawn.abs() < 1).double().mean()) - 0.6827) < 0.015
