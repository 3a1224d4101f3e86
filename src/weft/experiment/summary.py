"""The summary of a run: the figures that are reported, and all that is needed to believe them."""

from __future__ import annotations

import json
import math
import platform
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from weft.core.method import Method
from weft.core.registry import find
from weft.core.round import Federation
from weft.data.federated import FederatedData
from weft.experiment.account import PARTS
from weft.experiment.probe import Probe
from weft.experiment.settings import RunSettings, plain


def summarise(
    method: Method,
    data: FederatedData,
    settings: RunSettings,
    federation: Federation,
    rows: pa.Table,
    done: int,
    totals: Mapping[str, float],
    found: Probe,
    device: torch.device,
    last: int,
    privacy: Mapping[str, Any] | None,
    plan: str,
) -> dict[str, Any]:
    """The summary so far; `rows` are the metrics over clients, `done` the rounds played, `last` those to play,
    `totals` the costs, `privacy` what the ledger says.
    """
    entry = find(method.name)
    table = {k: rows[k].to_numpy(zero_copy_only=False) for k in ("round", "split", "view", "group", "metric", "value")}
    results = {view: figures for view in federation.method.views if (figures := _figures(table, view))}
    view = "personal" if "personal" in results else next(iter(results), "")
    recipe = data.manifest.get("recipe", {})
    costs = ("bytes_up", "bytes_down", "steps", "flops")
    return {
        "weft": version("weft"),
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
        "model": {"name": settings.model, "parameters": _parameters(federation)},
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


def _figures(table: dict[str, Any], view: str, group: str = "all") -> dict[str, Any]:
    """Last round, the round chosen by validation, and the mean of the last ten evaluated rounds."""
    here = (table["view"] == view) & (table["group"] == group)

    def at(number: int, split: str) -> dict[str, float]:
        then = here & (table["round"] == number) & (table["split"] == split)
        return dict(zip(table["metric"][then].tolist(), table["value"][then].tolist(), strict=True))

    judged = sorted(set(table["round"][here & (table["split"] == "test")].tolist()))
    if not judged:
        return {}
    found: dict[str, Any] = {"last": {"round": judged[-1], "test": at(judged[-1], "test")}}
    checked = [(at(n, "validation").get("accuracy"), -n) for n in judged]
    known = [(a, n) for a, n in checked if a is not None]
    if known:
        best = -max(known)[1]
        found["chosen"] = {"round": best, "by": "validation accuracy", "test": at(best, "test")}
    tail = [at(n, "test") for n in judged[-10:]]
    common = set.intersection(*(set(t) for t in tail))
    found["mean_last_10"] = {"test": {m: float(np.mean([t[m] for t in tail])) for m in sorted(common)}}
    new = _figures(table, view, "new") if group == "all" else {}
    asked = sorted(set(table["split"][here].tolist()) - {"train", "validation", "test"})
    streams = {name: at(judged[-1], name) for name in asked}
    return found | ({"new_clients": new["last"]["test"]} if new else {}) | ({"streams": streams} if streams else {})


def _parameters(federation: Federation) -> int:
    net = federation.net
    return sum(v.numel() for v in net.learnable(net.init(0)).values())


def dumps(summary: Any) -> str:
    """JSON with indentation; NaN becomes null."""
    return json.dumps(_finite(summary), indent=1) + "\n"


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    return [_finite(v) for v in value] if isinstance(value, list) else value
