"""The summary of a run: the figures that are reported, and all that is needed to believe them."""

from __future__ import annotations

import json
import math
import platform
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch

from weft.core.method import Method
from weft.core.registry import find
from weft.data.federated import FederatedData
from weft.experiment.account import PARTS
from weft.experiment.history import History
from weft.experiment.probe import Probe
from weft.experiment.settings import RunSettings, plain
from weft.version import __version__


def summarise(
    method: Method,
    views: Iterable[str],
    data: FederatedData,
    settings: RunSettings,
    history: History,
    done: int,
    totals: Mapping[str, float],
    found: Probe,
    device: torch.device,
    last: int,
    privacy: Mapping[str, Any] | None,
    plan: str,
) -> dict[str, Any]:
    """The summary so far; `views` are those of the method with its parts on, `done` the rounds played, `last` those to
    play, `totals` the costs, `privacy` what the ledger says.
    """
    entry = find(method.name)
    results = {view: figures for view in views if (figures := _figures(history, view))}
    view = "personal" if "personal" in results else next(iter(results), "")
    recipe = data.manifest.get("recipe", {})
    costs = ("bytes_up", "bytes_down", "steps", "flops")
    return {
        "weft": __version__,
        "method": method.name,
        "args": {k: plain(v) for k, v in method.args.items()},
        "title": entry.title,
        "family": entry.family,
        "protocol": data.protocol,
        "buffers": settings.buffers,
        "plug": list(settings.plug),
        "data": {
            **{k: v for k, v in recipe.items() if isinstance(v, str | int | float | bool)},
            "name": data.source.name,
            "clients": data.clients(),
            "manifest": data.manifest["hash"],
            **{split: len(getattr(data, split).rows) for split in ("train", "validation", "test")},
        },
        "model": {"name": settings.model, "parameters": found.parameters},
        "executor": settings.executor,
        "plan": plan,
        "rounds": done,
        "finished": done == last,
        "privacy": privacy,
        "secure_aggregation": settings.secure_aggregation,
        "results": results,
        "headline": {
            "view": view,
            "metric": "accuracy",
            "value": results[view]["last"]["test"]["accuracy"] if view else math.nan,
        },
        "cost": {
            **{k: totals.get(k, 0.0) for k in costs},
            "seconds": {k: totals.get(f"{k}_seconds", 0.0) for k in ("training", *PARTS, "total")},
        },
        "wire": found.wire,
        "machine": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "device": "cpu" if device.type == "cpu" else torch.cuda.get_device_name(device),
            "threads": torch.get_num_threads(),
        },
    }


def _figures(history: History, view: str, group: str = "all") -> dict[str, Any]:
    """Last round, the round chosen by validation, and the mean of the last ten evaluated rounds."""
    judged = history.of("test", view, group, "accuracy").rounds
    if not judged:
        return {}

    def at(number: int, split: str = "test") -> dict[str, float]:
        return history.at(number, split, view, group)

    found: dict[str, Any] = {"last": {"round": judged[-1], "test": at(judged[-1])}}
    checked, there = history.of("validation", view, group, "accuracy"), set(judged)
    known = [(accuracy, -number) for number, accuracy in zip(*checked, strict=True) if number in there]
    if known:
        best = -max(known)[1]
        found["chosen"] = {"round": best, "by": "validation accuracy", "test": at(best)}
    tail = [at(number) for number in judged[-10:]]
    common = set.intersection(*(set(t) for t in tail))
    found["mean_last_10"] = {"test": {m: float(np.mean([t[m] for t in tail])) for m in sorted(common)}}
    new = _figures(history, view, "new") if group == "all" else {}
    asked = sorted(history.splits(view, group) - {"train", "validation", "test"})
    streams = {name: at(judged[-1], name) for name in asked}
    return found | ({"new_clients": new["last"]["test"]} if new else {}) | ({"streams": streams} if streams else {})


def dumps(summary: Any) -> str:
    """JSON with indentation; NaN becomes null."""
    return json.dumps(_finite(summary), indent=1) + "\n"


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    return [_finite(v) for v in value] if isinstance(value, list) else value
