"""A small federation that every engine runs: seven clients, four of them in a round, in float64."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from tests.local.test_plugins import COMPOSED, SETTINGS
from weft.core import Method
from weft.core.registry import REGISTRY
from weft.experiment.plugins import load_methods
from weft.experiment.settings import DataSettings, RunSettings, make

CLIENTS, ROUNDS = 6, 3
METHODS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {  # label -> (method, its options, the run's)
    "fedavg": ("fedavg", {"lr": 0.1}, {}),
    "scaffold": ("scaffold", {"lr": 0.1}, {}),
    "ditto": ("ditto", {"lr": 0.1}, {}),
    "fedala": ("fedala", {"lr": 0.1, "max_passes": 3}, {}),
    "fedproto, two architectures": ("fedproto", {"lr": 0.1}, {"model": "mlp,logistic"}),
    "fedadam with top-k": ("fedadam", {"lr": 0.1}, {"compress": "topk:0.1"}),
}
BUILT: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    f"{name} with {what}": (name, {}, {"plug": SETTINGS[what].plug, "compress": SETTINGS[what].compress, "rounds": 2})
    for what, names in COMPOSED.items()
    for name in names
}
load_methods()
EVERY: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {  # whom the law `messages` applies to
    f"{name}, by default": (name, {}, {"rounds": 2})
    for name, e in sorted(REGISTRY.items())
    if "messages" not in e.apart
}
ALL = METHODS | BUILT | EVERY


def write_examples(folder: Path) -> Path:
    """Three classes of points, as an npz file."""
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, 360)
    x = rng.normal(size=(360, 100)) + rng.normal(size=(3, 100))[y]  # as many as mlp has features, for fedproto
    path = folder / "points.npz"
    np.savez(path, x=x.astype(np.float32), y=y)
    return path


def data_settings(path: Path) -> DataSettings:
    """Divided unequally."""
    return DataSettings(data=str(path), clients=CLIENTS, alpha=0.5, min_examples=8)


def run_settings(**changed: Any) -> RunSettings:
    """Four of six clients in a round, two epochs."""
    how = {"rounds": ROUNDS, "epochs": 2, "batch_size": 8, "cohort": 4, "model": "mlp", "precision": "fp64"}
    return RunSettings(**{**how, "device": "cpu", **changed})


def method(label: str) -> Method:
    """The method under a label."""
    name, options, _ = ALL[label]
    return make(name, options)
