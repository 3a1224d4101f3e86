"""The leaderboard as rows: from results to ``docs/leaderboard/table.csv``, and from that file back."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from benchmarks.methods import search
from benchmarks.methods.settings import SETTINGS
from benchmarks.methods.trials import Trial, chosen, following, pairs, read

from weft.core.errors import SettingError
from weft.core.registry import find
from weft.experiment.compare import standard_error, write_csv

Row = dict[str, Any]
PLACE = Path(__file__).parents[2] / "docs" / "leaderboard" / "table.csv"
NUMBERS = frozenset({
    "rank", "seeds", "lr", "rounds", "trials", "validation", "accuracy", "accuracy.se", "mean", "mean.se", "std",
    "worst_decile", "worst_decile.se", "last", "last.se", "longer", "bytes_up", "bytes_down",
    "steps", "flops", "seconds",
})  # fmt: skip


def table(out: Path, settings: Sequence[str] = (), methods: Sequence[str] = ()) -> list[Row]:
    """One row for each setting, method and view that has all seeds; ranks only where all methods have them.

    Figures are test figures of the round that validation chose, mean and standard error over seeds.

    Raises:
        SettingError: results of one setting are on other partitions.
    """
    rows: list[Row] = []
    every = pairs(settings, methods)
    for name in dict.fromkeys(s for s, _ in every):
        here: list[Row] = []
        whole, manifests = True, set()
        for method in (m for s, m in every if s == name):
            done = read(out / name / method)
            manifests |= {t["manifest"] for t in done.values() if "manifest" in t}
            if not done or following(SETTINGS[name], method, done) is not None:
                whole = False
                continue
            here += _rows(name, method, done)
        if len(manifests) > 1:
            raise SettingError(
                f"results = {out / name} are on {len(manifests)} partitions: delete those of the older one"
            )
        if whole:
            _rank(here)
        rows += here
    return rows


def _rows(name: str, method: str, done: Mapping[str, Trial]) -> list[Row]:
    """The rows of a method on a setting, one for each view."""
    options = chosen(done)
    parameter = search.PARAMETERS.get(method, ("",))[0]
    row: Row = {
        "setting": name,
        "method": method,
        "family": find(method).family,
        "view": "",
        "headline": "yes",
        "rank": None,
        "seeds": 0,
        "failed": "",
        "lr": options.get("lr"),
        "parameter": parameter,
        "value": _value(method, parameter, options),
        "rounds": SETTINGS[name].rounds,
        "trials": sum(t["seed"] == search.SEARCH_SEED for t in done.values()),
        "source": next(iter(done.values()))["source"],
    }
    runs = [done[f"seed={s}"] for s in search.SEEDS if f"seed={s}" in done]
    good = [r for r in runs if "error" not in r]
    if len(good) < len(runs) or not runs:
        bad = next((r for r in runs if "error" in r), None) or next(iter(done.values()))
        row["failed"] = f"{len(runs) - len(good)} of {len(runs)} seeds" if runs else "every learning rate of the search"
        row["failed"] += f": {bad['error']}"
    if not good:
        return [row]
    costs = {k: mean(r["cost"][k] for r in good) for k in ("bytes_up", "bytes_down", "steps", "flops", "seconds")}
    found = []
    for view in good[0]["views"]:
        figures: Row = {"view": view, "headline": "yes" if view == good[0]["view"] else "no", "seeds": len(good)}
        figures["validation"] = mean(r["validation"] for r in good) if view == good[0]["view"] else None
        for column, when, figure in (
            ("accuracy", "chosen", "accuracy"),
            ("mean", "chosen", "accuracy.mean"),
            ("std", "chosen", "accuracy.std"),
            ("worst_decile", "chosen", "accuracy.worst_decile"),
            ("last", "last", "accuracy"),
        ):
            values = [r["views"][view][when][figure] for r in good]
            figures[column] = mean(values)
            if column != "std":
                figures[f"{column}.se"] = standard_error(values)
        longer = done.get(f"rounds={search.LONGER}", {}).get("views")
        figures["longer"] = longer[view]["chosen"]["accuracy"] if longer else None
        found.append(row | figures | costs)
    return found


def _value(method: str, parameter: str, options: Mapping[str, Any]) -> Any:
    if not parameter or not options:
        return ""
    return options.get(parameter, find(method).options[parameter].default)


def kind(row: Mapping[str, Any]) -> str:
    """Who answers: a model of the client's own, or one that all share."""
    return "common" if row["view"] == "global" else "own"


def _rank(rows: Sequence[Row]) -> None:
    """Number the rows of a setting, apart for own and for common models; those that failed have no number."""
    for who in ("own", "common"):
        mine = [r for r in rows if "accuracy" in r and kind(r) == who and not r["failed"]]
        for place, row in enumerate(sorted(mine, key=lambda r: (-_written(r["accuracy"]), r["method"], r["view"])), 1):
            row["rank"] = place


def _written(value: float) -> float:
    """As it stands in the CSV, so that those that are equal there have the same order before and after."""
    return float(f"{value:.6g}")


def write(rows: Sequence[Row], place: Path = PLACE) -> None:
    """The rows as CSV."""
    place.parent.mkdir(parents=True, exist_ok=True)
    write_csv([{k: "" if v is None else v for k, v in row.items()} for row in rows], place)


def renewed(out: Path, place: Path = PLACE) -> list[Row]:
    """The rows of `table`, and those of the CSV for methods that were not begun in `out`; ranked anew."""
    before = [r for r in load(place) if not (out / r["setting"] / r["method"]).is_dir()] if place.exists() else []
    rows = [*table(out), *before]
    every = pairs()
    order = {pair: i for i, pair in enumerate(every)}
    rows.sort(key=lambda r: order[r["setting"], r["method"]])
    for name in SETTINGS:
        here = [r for r in rows if r["setting"] == name]
        for row in here:
            row["rank"] = None
        if {r["method"] for r in here} == {m for s, m in every if s == name}:
            _rank(here)
    return rows


def load(place: Path = PLACE) -> list[Row]:
    """The rows of a CSV, with numbers as numbers and None for what is not there."""
    with place.open(newline="") as file:
        return [
            {k: (float(v) if v else None) if k in NUMBERS else v for k, v in row.items()}
            for row in csv.DictReader(file)
        ]


def whole(rows: Sequence[Row]) -> list[str]:
    """The settings in which every method has all seeds."""
    return [s for s in dict.fromkeys(r["setting"] for r in rows) if any(r["rank"] for r in rows if r["setting"] == s)]
