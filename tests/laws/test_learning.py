"""What a method says it learns moves; if no client learns, the model stands still."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils._pytree import tree_flatten_with_path, tree_leaves

from tests.laws.toys import cohort, kept, make, start, subjects, train
from weft.local import SGD


@pytest.mark.parametrize("name", subjects("moves"))
def test_what_is_kept_moves(name: str) -> None:
    """Every floating-point entry that a client keeps, or the server holds, has changed after three turns of all."""
    before, after = start(make(name)), train(make(name), rounds=3, size=6)
    for what, old, new in [("server", before.server, after.server), *_kept(before, after)]:
        for (path, a), b in zip(tree_flatten_with_path(old)[0], tree_leaves(new), strict=True):
            if a.is_floating_point() and a.numel():
                assert not torch.equal(a, b), f"{what}{path} has not moved"


def _kept(before: Any, after: Any) -> list[tuple[str, Any, Any]]:
    return [("kept", a.method, b.method) for a, b in zip(kept(before), kept(after), strict=True)]


STILL: dict[str, dict[str, Any]] = {  # what learns beside the local optimiser stands still too
    "apple": {"lr_p": 0.0},
    "fedala": {"eta": 0.0},
    "fedas": {"lr_align": 0.0},
    "fedgh": {"eta_s": 0.0},
    "marsit": {"eta_s": 0.0},
    "fednova": {"opt": SGD(1e-300)},  # they divide by the rate
    "scaffold": {"opt": SGD(1e-300)},
}


@pytest.mark.parametrize("name", subjects("still"))
def test_if_nobody_learns_the_model_stands_still(name: str) -> None:
    """With learning rate 0 every learnable entry of the server's model stays as it was.

    If the server holds no model, so does every one that it holds for its clients, or that they keep.
    """
    options = {"opt": SGD(0.0), **STILL.get(name, {})}
    before, after = start(make(name, **options)), train(make(name, **options), rounds=2)
    models = [
        models_in(f, f.server.model if hasattr(f.server, "model") else (f.server, kept(f))) for f in (before, after)
    ]
    assert models[0] and models[0].keys() == models[1].keys()
    for path, old in models[0].items():
        assert float((models[1][path] - old).abs().max()) < 1e-12, path


def models_in(federation: Any, held: Any) -> dict[str, torch.Tensor]:
    """Where -> entry, of all that have the name of an entry which gradients move."""
    learnable = {k for g in federation.groups for k in g.net.learnable(dict.fromkeys(g.net.roles, torch.zeros(())))}
    found = {}
    for path, x in tree_flatten_with_path(held)[0]:
        if getattr(path[-1], "key", None) in learnable:
            found[str(path)] = x
    return found


def test_absent_and_present_differ() -> None:
    """The law above can fail: with a learning rate the model does move."""
    assert not torch.equal(
        train(make("fedavg")).server.model["head.bias"], start(make("fedavg")).server.model["head.bias"]
    )
    assert len(cohort(1)) == 4
