"""At its neutral setting a method is the method it extends."""

from __future__ import annotations

import pytest
from torch.utils._pytree import tree_leaves

from tests.laws.toys import METHODS, differ, groups, kept, make, train
from weft.core.registry import REGISTRY

NEUTRAL = [name for name in METHODS if REGISTRY[name].neutral]


@pytest.mark.parametrize("name", NEUTRAL)
def test_neutral_setting(name: str) -> None:
    neutral = REGISTRY[name].neutral
    assert neutral is not None
    other, theirs, ours = neutral
    alike = groups("fedavg")
    a, b = train(make(name, **ours), nets=alike), train(make(other, **theirs), nets=alike)
    model, like = getattr(a.server, "model", None), getattr(b.server, "model", None)
    if model is not None and like is not None and set(model) == set(like):
        assert max(float((model[k] - like[k]).abs().max()) for k in model) <= 1e-12
        return
    assert personal(a) and len(personal(a)) == len(personal(b))
    assert max(float((x - y).abs().max()) for x, y in zip(personal(a), personal(b), strict=True)) <= 1e-12


def personal(federation):  # type: ignore[no-untyped-def]
    """Everybody's own model, for methods without a common one."""
    return tree_leaves([mine.method for mine in kept(federation)])


OFF = {
    "fedprox": {"mu": 0.0},
    "moon": {"mu": 0.0},
    "fedavgm": {"beta": 0.0},
    "ditto": {"lam": 0.0},
    "apfl": {"lr_alpha": 0.0},
    "per-fedavg": {"alpha": 0.0},
    "fedala": {"eta": 0.0},
    "fedproto": {"lam": 0.0},
    "feddistill": {"lam": 0.0},
    "fedntd": {"beta": 0.0},
    "fedgen": {"weight": 0.0},
    "marsit": {"every": 1},
    "fml": {"alpha": 1.0, "beta": 1.0},
    "fedmtl": {"lam": 0.0},
    "fedamp": {"lam": 0.0},
    "heurfedamp": {"pull": 0.0},
    "fedfomo": {"share": 0.01},
    "fedphp": {"lam": 0.0},
    "apple": {"lr_p": 0.0},
    "pfl-da": {"lam": 0.0},
    "fedas": {"lr_align": 0.0},
    "fedpac": {"lam": 0.0},
    "fedcac": {"tau": 0.0},
    "fedlc": {"tau": 0.0},
    "fedrod": {"gamma": 0.0},
    "fedcp": {"lam": 0.0},
    "gpfl": {"mu": 0.0},
    "fedgc": {"lam": 0.0},
    "fedgh": {"eta_s": 0.0},
    "feddbe": {"kappa": 0.0},
    "pfa": {"warm": 1000},
    "distfl": {"gap_min": 2.0},
    "btfl": {"head_epochs": 0},
}


@pytest.mark.parametrize("name", OFF)
def test_the_default_is_not_off(name: str) -> None:
    """Who names a method without options gets the method."""
    assert differ(train(make(name)), train(make(name, **OFF[name])))


def test_there_are_neutral_settings() -> None:
    assert len(NEUTRAL) >= 5
