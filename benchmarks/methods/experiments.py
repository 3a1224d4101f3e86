"""Runs beside the leaderboard that ask why an order is another one: ``python -m benchmarks.methods.experiments``.

They stand in ``experiments.yaml``, each a setting of the leaderboard with something else in it. Those whose figures are
not in ``docs/leaderboard/experiments.csv`` yet are run, one after the other; delete a line there to run it anew.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

import torch
import yaml
from benchmarks.methods import search, table, trials
from benchmarks.methods.settings import SETTINGS, Setting, divided

from weft.core.errors import SettingError
from weft.experiment.compare import standard_error
from weft.experiment.plugins import load_methods

PLACE = Path(__file__).parent / "experiments.yaml"
FIGURES = table.PLACE.with_name("experiments.csv")


class Experiment(NamedTuple):
    """A method with these options in a setting, some of whose parts are others."""

    name: str
    setting: str
    method: str
    options: dict[str, Any]
    division: dict[str, Any]
    run: dict[str, Any]
    rounds: int
    seeds: int

    def changed(self) -> Setting:
        """The setting as it is in this experiment."""
        old = SETTINGS[self.setting]
        return replace(old, division={**old.division, **self.division}, run={**old.run, **self.run}, rounds=self.rounds)


def experiments(place: Path = PLACE) -> list[Experiment]:
    """What is in the file; `SettingError` for an entry that names no setting of ours, or holds something strange."""
    found = []
    for entry in yaml.safe_load(place.read_text(encoding="utf-8")) or []:
        strange = set(entry) - set(Experiment._fields)
        if strange or entry.get("setting") not in SETTINGS or not {"name", "method", "options"} <= set(entry):
            raise SettingError(f"{place.name}: {entry.get('name')!r} lacks a part, is on no setting, or has {strange}")
        usual = {"division": {}, "run": {}, "rounds": SETTINGS[entry["setting"]].rounds, "seeds": len(search.SEEDS)}
        found.append(Experiment(**{**usual, **entry}))
    return found


def load() -> list[table.Row]:
    """A row for each experiment and view, whose setting is the experiment's name."""
    return table.load(FIGURES) if FIGURES.exists() else []


def rows(e: Experiment) -> list[table.Row]:
    """Run it: mean and standard error of test accuracy in the round that validation chose."""
    setting = e.changed()
    examples = divided(setting)
    plan = [{"options": e.options, "seed": s, "rounds": e.rounds} for s in search.SEEDS[: e.seeds]]
    runs = [trials.run(setting, e.method, trial, examples) for trial in plan]
    bad = next((r["error"] for r in runs if "error" in r), None)
    if bad:
        raise SettingError(f"experiment {e.name} fails: {bad}")
    found = []
    for view in runs[0]["views"]:
        values = [r["views"][view]["chosen"]["accuracy"] for r in runs]
        figures = {"accuracy": mean(values), "accuracy.se": standard_error(values) if len(values) > 1 else None}
        told = {"setting": e.name, "method": e.method, "view": view, "seeds": e.seeds, "rounds": e.rounds}
        found.append(told | {"headline": "yes" if view == runs[0]["view"] else "no"} | figures)
    return found


def main(chosen: Sequence[Experiment]) -> None:
    """Run what has no figures yet, and forget figures of experiments that are no more."""
    load_methods()
    torch.set_num_threads(1)
    wanted = {(e.name, e.method) for e in chosen}
    done = [row for row in load() if (row["setting"], row["method"]) in wanted]
    for e in chosen:
        if (e.name, e.method) not in {(row["setting"], row["method"]) for row in done}:
            done += rows(e)
            print(f"{e.name} {e.method}: {done[-1]['accuracy']:.4f}", flush=True)
            table.write(done, FIGURES)
    table.write(done, FIGURES)


if __name__ == "__main__":
    main(experiments())
