"""What a method says it learns moves; if no client learns, the model stands still."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils._pytree import tree_flatten_with_path, tree_leaves

from tests.laws.toys import METHODS, cohort, kept, make, start, train
from weft.core.registry import REGISTRY
from weft.local import SGD


@pytest.mark.parametrize("name", METHODS)
def test_what_is_kept_moves(name: str) -> None:
    """Every floating-point entry that a client keeps, or the server holds, has changed after three turns of all."""
    exempt = REGISTRY[name].exempt.get("moves", "")
    before, after = start(make(name)), train(make(name), rounds=3, size=6)
    for what, old, new in [("server", before.server, after.server), *_kept(before, after)]:
        for (path, a), b in zip(tree_flatten_with_path(old)[0], tree_leaves(new), strict=True):
            if a.is_floating_point() and a.numel() and not exempt:
                assert not torch.equal(a, b), f"{what}{path} has not moved"


def _kept(before: Any, after: Any) -> list[tuple[str, Any, Any]]:
    return [("kept", a.method, b.method) for a, b in zip(kept(before), kept(after), strict=True)]


STILL: dict[str, dict[str, Any]] = {
    "fedala": {"opt": SGD(0.0), "eta": 0.0},
    "fedas": {"opt": SGD(0.0), "lr_align": 0.0},
    "marsit": {"opt": SGD(0.0), "eta_s": 0.0},
    "fednova": {"opt": SGD(1e-300)},  # they divide by the rate
    "scaffold": {"opt": SGD(1e-300)},
}


@pytest.mark.parametrize("name", METHODS)
def test_if_nobody_learns_the_model_stands_still(name: str) -> None:
    """With learning rate 0 every learnable entry of the server's model stays as it was."""
    options = STILL.get(name, {"opt": SGD(0.0)})
    federation = train(make(name, **options), rounds=2)
    model = getattr(federation.server, "model", None)
    if model is None:
        pytest.skip(REGISTRY[name].exempt.get("still", "the server holds no model"))
    first = start(make(name)).server.model
    learnable = federation.net.learnable
    for key, value in learnable(model).items():
        assert float((value - learnable(first)[key]).abs().max()) < 1e-12, key


def test_absent_and_present_differ() -> None:
    """The law above can fail: with a learning rate the model does move."""
    assert not torch.equal(
        train(make("fedavg")).server.model["head.bias"], start(make("fedavg")).server.model["head.bias"]
    )
    assert len(cohort(1)) == 4
