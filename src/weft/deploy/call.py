"""What the server tells a node about a run: names and arguments, never code."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Sequence
from typing import Any

import weft
from weft.core.clients import Group
from weft.core.method import Method
from weft.core.registry import find
from weft.experiment.settings import RunSettings, Settings, plain
from weft.privacy.private import Privacy


def call(
    run: str, method: Method, settings: RunSettings, population: int, privacy: Privacy | None = None
) -> dict[str, Any]:
    """As plain values; `run` is a name under which nodes keep what they keep."""
    return {
        "run": run,
        "population": population,
        "method": {"name": method.name, **{k: plain(v) for k, v in method.args.items()}},
        "privacy": vars(privacy) if privacy else None,
        "settings": {**vars(settings), "executor": "batched", "chunk": 0, "workers": 1, "device": "auto"},
    }


def called(told: dict[str, Any]) -> tuple[Method, RunSettings]:
    """The method and the settings of the run, made by this installation.

    Raises:
        SettingError: there is no such method or setting here.
    """
    found = Settings.read({"method": told["method"], "run": told["settings"]})
    return found.method, found.run


def protected(told: dict[str, Any]) -> Privacy | None:
    """The differential privacy of the run: nodes clip, which depends on the size of the cohort, and may add noise."""
    return Privacy(**told["privacy"]) if told["privacy"] else None


def version(name: str) -> str:
    """Which `name` this installation has: the release and a hash of the method's file."""
    source = inspect.getsource(inspect.getmodule(inspect.unwrap(find(name).make)) or weft)
    return f"{name} of weft {weft.__version__} ({hashlib.sha256(source.encode()).hexdigest()[:8]})"


def shapes(groups: Sequence[Group]) -> list[dict[str, str]]:
    """For each architecture, the entries of its models with their types and shapes."""
    return [
        {k: f"{str(v.dtype).removeprefix('torch.')} {list(v.shape)}" for k, v in sorted(g.net.init(0).items())}
        for g in groups
    ]


def unlike(theirs: Sequence[dict[str, str]], ours: Sequence[dict[str, str]]) -> str:
    """The first difference between two lists of shapes, in words; "" if there is none."""
    for there, here in zip(theirs, ours, strict=False):
        for entry in sorted({*there, *here}):
            if there.get(entry) != here.get(entry):
                return (
                    f"its model has {entry} as {there.get(entry, 'nothing')}, and ours as {here.get(entry, 'nothing')}"
                )
    return "" if len(theirs) == len(ours) else f"it knows {len(theirs)} architectures, and we {len(ours)}"
