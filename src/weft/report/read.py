"""Run folders as values: everything that a report says, read once and checked."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import yaml

from weft.core.errors import SettingError

SPLITS = ("train", "validation", "test")
_COLUMNS = ("round", "split", "view", "group", "client", "metric", "value")


class Series(NamedTuple):
    """Names one over-clients curve."""

    split: str
    view: str
    group: str
    metric: str


class Curve(NamedTuple):
    """Values by evaluated round; both of length [rounds], rounds increasing."""

    rounds: tuple[int, ...]
    values: tuple[float, ...]


class Clients(NamedTuple):
    """One metric of every client on its own test data, by ascending client id; all of length [clients]."""

    round: int
    ids: tuple[int, ...]
    values: tuple[float, ...]


class Result(NamedTuple):
    """Test figures of one view at "last", "chosen", "mean_last_10", or of one group of clients."""

    view: str
    moment: str
    round: int | None
    test: Mapping[str, float]


class Wire(NamedTuple):
    """What one client sends or receives on one channel in one round."""

    direction: str
    channel: str
    tensors: int
    bytes: int


@dataclass(frozen=True)
class Run:
    """One run folder. `histogram` is [splits, clients, classes], None where the manifest holds none."""

    folder: Path
    label: str
    arm: str
    method: str
    title: str
    family: str
    protocol: str
    buffers: str
    data: Mapping[str, Any]
    model: Mapping[str, Any]
    executor: str
    plan: str
    rounds: int
    planned: int
    finished: bool
    view: str
    metric: str
    results: tuple[Result, ...]
    curves: Mapping[Series, Curve]
    clients: Mapping[tuple[str, str], Clients]
    histogram: np.ndarray | None
    recipe: Mapping[str, Any]
    manifest: str
    cost: Mapping[str, float]
    wire: tuple[Wire, ...]
    versions: Mapping[str, str]
    settings: Mapping[str, Any]
    privacy: Mapping[str, Any]  # what the ledger says; empty without differential privacy

    def result(self, moment: str, view: str | None = None) -> Result | None:
        """The figures at `moment` of `view` (by default the headline view), None where there are none."""
        wanted = self.view if view is None else view
        return next((r for r in self.results if (r.moment, r.view) == (moment, wanted)), None)

    def views(self) -> tuple[str, ...]:
        """Every view with test figures, the headline view first."""
        found = dict.fromkeys(r.view for r in self.results)
        return tuple(sorted(found, key=lambda v: v != self.view))


def read_run(folder: Path) -> Run:
    """The run in `folder`, finished or killed half-way.

    Raises:
        SettingError: there is no run, no evaluated round yet, or a file is damaged.
    """
    if not folder.is_dir():
        raise SettingError(f"run = {folder} is not a folder: name a folder that `weft run --out` wrote.")
    settings = _mapping(folder / "settings.yaml")
    summary = _mapping(folder / "summary.json", needed=False)
    manifest = _mapping(folder / "manifest.json", needed=False)
    try:
        return _run(folder, settings, summary, manifest)
    except SettingError:
        raise
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise SettingError(
            f"run = {folder} holds an unexpected value ({_line(error)}): repeat the run, or leave it out."
        ) from error


def read_runs(folders: Sequence[Path]) -> tuple[Run, ...]:
    """Several runs, each with its own label: its title, and the settings that tell equal titles apart."""
    if not folders:
        raise SettingError("runs = [] leaves nothing to report: name at least one run folder.")
    runs = [read_run(folder) for folder in folders]
    flat = [flatten(run.settings) for run in runs]
    titles = Counter(run.title for run in runs)
    named = []
    for run, mine in zip(runs, flat, strict=True):
        if titles[run.title] > 1:
            peers = [f for r, f in zip(runs, flat, strict=True) if r.title == run.title]
            keys = sorted(k for k in set().union(*peers) if len({p.get(k) for p in peers}) > 1)
            told = {k: f"{k.rpartition('.')[2]}={mine.get(k, 'unset')}" for k in keys}
            arm = " ".join([run.title, *(v for k, v in told.items() if not k.endswith("seed"))])
            run = replace(run, label=" ".join([run.title, *told.values()]), arm=arm)
        named.append(run)
    labels = Counter(run.label for run in named)
    return tuple(
        replace(run, label=f"{run.label} ({run.folder.name})") if labels[run.label] > 1 else run for run in named
    )


def flatten(tree: Any, path: str = "") -> dict[str, str]:
    """Nested settings as dotted name -> text."""
    if isinstance(tree, Mapping) and tree:
        return {
            k: v
            for name, leaf in tree.items()
            for k, v in flatten(leaf, f"{path}.{name}" if path else str(name)).items()
        }
    return {path: tree if isinstance(tree, str) else json.dumps(tree, default=str, ensure_ascii=False)}


def _run(folder: Path, settings: Mapping[str, Any], summary: Mapping[str, Any], manifest: Mapping[str, Any]) -> Run:
    curves, clients = _metrics(folder)
    method = str(summary.get("method") or settings["method"]["name"])
    headline = summary.get("headline", {})
    metric = str(headline.get("metric", "accuracy"))
    views = dict.fromkeys(s.view for s in curves if s.split == "test")
    view = str(headline.get("view", "personal" if "personal" in views else next(iter(views), "")))
    rounds = max((c.rounds[-1] for c in curves.values()), default=0)
    planned = int(settings.get("run", {}).get("rounds", summary.get("rounds", rounds)))
    data = {**settings.get("data", {}), **summary.get("data", {})}
    cost = {k: v for k, v in summary.get("cost", {}).items() if k != "seconds"}
    cost |= {f"seconds.{k}": v for k, v in summary.get("cost", {}).get("seconds", {}).items()}
    title = str(summary.get("title", method))
    return Run(
        folder=folder,
        label=title,
        arm=title,
        method=method,
        title=title,
        family=str(summary.get("family", "")),
        protocol=str(summary.get("protocol", data.get("protocol", settings.get("run", {}).get("protocol", "")))),
        buffers=str(summary.get("buffers", "")),
        data=data,
        model=summary.get("model", {}),
        executor=str(summary.get("executor", "")),
        plan=str(summary.get("plan", "")),
        rounds=int(summary.get("rounds", rounds)) if summary.get("finished") else rounds,
        planned=planned,
        finished=bool(summary.get("finished", False)),
        privacy=summary.get("privacy") or {},
        view=view,
        metric=metric,
        results=_results(summary.get("results", {}), curves, metric),
        curves=curves,
        clients=clients,
        histogram=_histogram(manifest.get("histogram")),
        recipe=manifest.get("recipe", {}) if isinstance(manifest.get("recipe"), Mapping) else {},
        manifest=str(data.get("manifest") or manifest.get("hash", "")),
        cost={k: float(v) for k, v in cost.items() if v is not None},
        wire=tuple(
            Wire(str(w["direction"]), str(w["channel"]), int(w["tensors"]), int(w["bytes"]))
            for w in summary.get("wire", [])
        ),
        versions={k: str(v) for k, v in {"weft": summary.get("weft", "unknown"), **summary.get("machine", {})}.items()},
        settings=settings,
    )


def _mapping(file: Path, needed: bool = True) -> dict[str, Any]:
    if not file.is_file():
        if needed:
            raise SettingError(f"run = {file.parent} has no {file.name}: name a folder that `weft run --out` wrote.")
        return {}
    try:
        text = file.read_text(encoding="utf-8")
        value = json.loads(text) if file.suffix == ".json" else yaml.safe_load(text)
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise SettingError(f"{file} can't be read ({_line(error)}): repeat the run, or leave it out.") from error
    if not isinstance(value, dict):
        raise SettingError(f"{file} holds no table of names and values: repeat the run, or leave it out.")
    return value


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:160]


def _metrics(folder: Path) -> tuple[dict[Series, Curve], dict[tuple[str, str], Clients]]:
    parts = sorted((folder / "metrics.parquet").glob("round-*.parquet"))
    if not parts:
        raise SettingError(f"run = {folder} has no evaluated round in metrics.parquet: let it evaluate one first.")
    over_clients = pa.concat_tables([_part(part, pc.field("client") == -1) for part in parts])
    points: dict[Series, dict[int, float]] = {}
    for r, split, view, group, _, metric, value in zip(*_columns(over_clients), strict=True):
        points.setdefault(Series(split, view, group, metric), {})[r] = math.nan if value is None else value
    curves = {s: Curve(*map(tuple, zip(*sorted(p.items()), strict=True))) for s, p in points.items()}
    own_test = (pc.field("client") >= 0) & (pc.field("split") == "test") & (pc.field("group") != "new")
    for part in reversed(parts):
        rows = _part(part, own_test)
        if rows.num_rows:
            return curves, _clients(rows)
    return curves, {}


def _part(part: Path, rows: pc.Expression) -> pa.Table:
    try:
        return pq.read_table(part, columns=list(_COLUMNS), filters=rows)
    except (OSError, pa.ArrowException) as error:
        raise SettingError(f"{part} can't be read ({_line(error)}): delete that part, or repeat the run.") from error


def _columns(table: pa.Table) -> list[list[Any]]:
    return [table.column(name).to_pylist() for name in _COLUMNS]


def _clients(rows: pa.Table) -> dict[tuple[str, str], Clients]:
    found: dict[tuple[str, str], dict[int, float]] = {}
    last = max(rows.column("round").to_pylist())
    for r, _, view, _, client, metric, value in zip(*_columns(rows), strict=True):
        if r == last and value is not None and math.isfinite(value):
            found.setdefault((view, metric), {})[client] = value
    return {k: Clients(last, *map(tuple, zip(*sorted(v.items()), strict=True))) for k, v in found.items()}


def _results(summary: Mapping[str, Any], curves: Mapping[Series, Curve], metric: str) -> tuple[Result, ...]:
    """What the summary states, and what the metrics give where a killed run left it unsaid."""
    stated = []
    for view, moments in summary.items():
        streams = {f"stream {name}": figures for name, figures in moments.get("streams", {}).items()}
        for moment, entry in {**{k: v for k, v in moments.items() if k != "streams"}, **streams}.items():
            figures = {
                k: math.nan if v is None else float(v) for k, v in entry.get("test", entry).items() if k != "round"
            }
            stated.append(Result(str(view), str(moment), entry.get("round"), figures))
    known = {(r.view, r.moment) for r in stated}
    derived = [
        r for view in dict.fromkeys(s.view for s in curves if s.split == "test") for r in _derive(view, curves, metric)
    ]
    return (*stated, *(r for r in derived if (r.view, r.moment) not in known))


def _derive(view: str, curves: Mapping[Series, Curve], metric: str) -> list[Result]:
    test = {s: c for s, c in curves.items() if s.split == "test" and s.view == view}

    def at(group: str, r: int) -> dict[str, float]:
        return {s.metric: c.values[c.rounds.index(r)] for s, c in test.items() if s.group == group and r in c.rounds}

    if (main := test.get(Series("test", view, "all", metric))) is None:
        return []
    last = main.rounds[-1]
    ten = {s.metric: c.values[-10:] for s, c in test.items() if s.group == "all"}
    found = [
        Result(view, "last", last, at("all", last)),
        Result(view, "mean_last_10", None, {k: sum(v) / len(v) for k, v in ten.items()}),
    ]
    validation = curves.get(Series("validation", view, "all", metric))
    judged = [(v, r) for r, v in zip(*validation, strict=True) if math.isfinite(v)] if validation else []
    if judged:
        best = min(judged) if metric == "loss" else max(judged, key=lambda p: (p[0], -p[1]))
        found.append(Result(view, "chosen", best[1], at("all", best[1])))
    for group, moment in (("participating", "participating"), ("absent", "absent"), ("new", "new_clients")):
        if figures := at(group, last):
            found.append(Result(view, moment, last, figures))
    return found


def _histogram(histogram: Any) -> np.ndarray | None:
    """Counts [splits, clients, classes], from {split: [clients][classes]} or [clients]{split: [classes]}."""
    if not histogram:
        return None
    if isinstance(histogram, Mapping):
        table = [histogram.get(split) for split in SPLITS]
    else:
        table = [[client.get(split) for client in histogram] for split in SPLITS]
    full = [part for part in table if part and part[0]]
    if not full:
        return None
    blank = np.zeros(np.shape(full[0]), dtype=np.int64)
    return np.stack([np.asarray(part, dtype=np.int64) if part and part[0] else blank for part in table])
