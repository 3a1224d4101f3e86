"""A run from Python: `weft.run` and `weft.reopen`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from weft.core.method import Method
from weft.core.registry import find
from weft.data.federated import FederatedData
from weft.experiment import assemble
from weft.experiment.plugins import load_methods
from weft.experiment.result import Result
from weft.experiment.run import Run, Tell
from weft.experiment.settings import RunSettings, Settings, from_mapping
from weft.experiment.sources import federated


def run(
    method: Method | str,
    data: FederatedData,
    *,
    model: assemble.Network | Sequence[assemble.Network] | None = None,
    out: Path | str | None = None,
    resume: bool = False,
    trackers: Sequence[str] = (),
    tell: Tell | None = None,
    **settings: Any,
) -> Result:
    """Train a method on federated data.

    Args:
        method: a method, or its name for its defaults.
        data: who has which examples.
        model: a network by name (also as the setting of that name), a `Net`, a function that builds an ``nn.Module``,
            or a list of them for mixed architectures.
        out: the run folder; without one nothing is written.
        resume: go on with the run in `out`.
        trackers: names of trackers to feed: tensorboard, mlflow, wandb.
        tell: called after every round.
        **settings: fields of `RunSettings`, such as ``rounds=50, lr_schedule="cosine"``.

    Returns:
        Result: history, summary and predictors.

    Raises:
        SettingError: a setting is wrong; nothing has been written.
        NotFinite: an upload held a NaN, and ``on_nan`` is "stop".
    """
    load_methods()
    if isinstance(method, str):
        method = find(method).make()
    if isinstance(model, str):
        settings["model"], model = model, None
    chosen = from_mapping(RunSettings, settings)
    return Run.prepare(method, data, chosen, model, out, resume, trackers).go(tell)


def reopen(path: Path | str) -> Result:
    """The result of a run folder, with its models: what `Result.save` or a run with `out` has left.

    The method, the data and the network must be known by name; a stopped run gives its last checkpoint.

    Raises:
        SettingError: there is no run, or its data have changed.
    """
    load_methods()
    found = Settings.read(Path(path) / "settings.yaml")
    chosen = replace(found.run, executor="batched")  # nothing is trained any more
    return Run.prepare(found.method, federated(found.data), chosen, out=path, resume=True).result()
