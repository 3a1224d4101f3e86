"""The report: one HTML file from run folders, readable without a network and without scripts."""

from __future__ import annotations

import os
import shlex
import statistics
import tempfile
from collections.abc import Iterable, Sequence
from importlib import resources
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import yaml
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from weft.core.errors import SettingError
from weft.report import chart
from weft.report.number import number
from weft.report.read import Run, Series, flatten, read_runs
from weft.report.story import joined, notices, sentences, unit_of, words
from weft.report.versus import BASELINES, baseline_of, budgets, count, pairs, same_data, sizes, subject_of

MOMENTS = {
    "last": "Last round",
    "chosen": "Round chosen by validation",
    "mean_last_10": "Mean of the last ten evaluated rounds",
    "participating": "Last round, clients that took part",
    "absent": "Last round, clients that were absent",
    "new_clients": "Clients never seen in training",
}
SUMMARIES = ("", ".mean", ".std", ".worst_decile")
ROWS = 60
CLASSES = 100
DOTS = 1500
TABLE = 500


class Table(NamedTuple):
    """A table with `words` left-aligned columns; a row of one cell heads those below it."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    words: int = 1


class Figure(NamedTuple):
    """A chart, what to see in it, and its numbers."""

    title: str
    svg: Markup
    note: str = ""
    table: Table | None = None


def write_report(runs: Sequence[Path], out: Path) -> Path:
    """Writes the report on the run folders `runs` to `out`, all of it or nothing, and returns `out`.

    Raises:
        SettingError: a run folder is missing, empty or damaged, or `out` is a folder.
    """
    if out.is_dir():
        raise SettingError(f"out = {out} is a folder: name a file, such as {out / 'report.html'}.")
    page = render(read_runs(runs))
    out.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=out.parent, prefix=f".{out.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(page)
        Path(name).chmod(0o644)
        os.replace(name, out)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    return out


def render(runs: Sequence[Run]) -> str:
    """The report on `runs` as HTML."""
    folder = resources.files(__package__)
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string((folder / "template.html").read_text(encoding="utf-8"))
    subject = subject_of(runs)
    return template.render(
        style=Markup((folder / "style.css").read_text(encoding="utf-8")),
        title=_heading(runs),
        chips=_chips(runs),
        sentences=sentences(runs),
        notices=notices(runs),
        tiles=_tiles(runs, subject),
        metric=words(subject.metric),
        results=_results(runs),
        seeds=_seeds(runs),
        legend=_legend(runs),
        curves=_curves(runs),
        spread=_strips(runs),
        gains=[f for b in BASELINES if (f := _gains(runs, subject, b)) is not None],
        gain_table=_gain_table(runs),
        extremes=_extremes(subject),
        clients=_client_table(runs),
        partitions=_partitions(runs),
        bytes=_bytes(runs),
        seconds=_seconds(runs),
        costs=_costs(runs),
        wire=_wire(runs),
        shared=_settings(runs)[0],
        differing=_settings(runs)[1],
        repeats=[
            (r.label, _command(r), yaml.safe_dump(dict(r.settings), sort_keys=False, allow_unicode=True)) for r in runs
        ],
    )


def _heading(runs: Sequence[Run]) -> str:
    data = dict.fromkeys(str(r.data.get("name", "")) for r in runs)
    arms = list(dict.fromkeys(r.arm for r in runs))
    what = joined(arms) if len(arms) <= 4 else f"{len(arms)} methods"
    return f"{what} on {joined([d for d in data if d] or ['unnamed data'])}"


def _chips(runs: Sequence[Run]) -> list[tuple[str, str]]:
    def all_of(values: Iterable[object]) -> str:
        return joined([str(v) for v in dict.fromkeys(v for v in values if v not in (None, ""))] or ["unknown"])

    def partition(run: Run) -> str:
        alpha = run.data.get("alpha")
        named = str(run.data.get("partition", ""))
        return f"{named} (α = {alpha})" if named == "dirichlet" and alpha is not None else named

    chips = [
        ("Partition", all_of(partition(r) for r in runs)),
        ("Clients", all_of(r.data.get("clients") for r in runs)),
        ("Protocol", all_of(r.protocol for r in runs)),
        ("Rounds", all_of(r.rounds for r in runs)),
        ("Model", all_of(r.model.get("name") for r in runs)),
        ("Manifest", all_of(r.manifest[:12] for r in runs)),
    ]
    return [(name, value) for name, value in chips if value != "unknown"]


class _Tile(NamedTuple):
    colour: int
    name: str
    value: str
    notes: list[tuple[str, str]]


def _tiles(runs: Sequence[Run], subject: Run) -> list[_Tile]:
    """The last round's figure of each run, or of each view of a single run; six at most."""
    ordered = [subject, *(r for r in runs if r is not subject)]
    shown = [(r, v) for r in ordered for v in (r.views() if len(runs) == 1 else (r.view,))][:6]
    colours = _colours(runs)
    tiles = []
    for run, view in shown:
        unit, notes = unit_of(run.metric), []
        for moment, name in (
            ("chosen", "chosen by validation"),
            ("mean_last_10", "mean of last ten"),
            ("new_clients", "new clients"),
        ):
            if (figure := run.result(moment, view)) and run.metric in figure.test:
                at = f", round {figure.round}" if moment == "chosen" else ""
                notes.append((name + at, number(figure.test[run.metric], unit)))
        last = run.result("last", view)
        if last is not None:
            worst = last.test.get(f"{run.metric}.worst_decile")
            notes.append(("worst tenth of clients", number(worst, unit)))
            tiles.append(_Tile(colours[run.arm], _entry(run, view), number(last.test.get(run.metric), unit), notes))
    return tiles


def _entry(run: Run, view: str) -> str:
    return f"{run.label} · {view}" if view else run.label


def _colours(runs: Sequence[Run]) -> dict[str, int]:
    return {arm: i % chart.COLOURS for i, arm in enumerate(dict.fromkeys(r.arm for r in runs))}


def _results(runs: Sequence[Run]) -> Table:
    """For each moment the four summaries over clients, and the loss."""
    rows: list[list[str]] = []
    streams = dict.fromkeys(r.moment for run in runs for r in run.results if r.moment.startswith("stream "))
    for moment, name in {**MOMENTS, **{s: f"Last round, test {s}" for s in streams}}.items():
        found = [(r, v, result) for r in runs for v in r.views() if (result := r.result(moment, v)) is not None]
        rows += [[name]] if found else []
        for run, view, result in found:
            at = f", round {result.round}" if moment == "chosen" and result.round is not None else ""
            figures = [number(result.test.get(run.metric + s), unit_of(run.metric)) for s in SUMMARIES]
            rows.append([_entry(run, view) + at, *figures, number(result.test.get("loss"))])
    return Table(["", "weighted mean", "plain mean", "std", "worst tenth", "loss"], rows)


def _seeds(runs: Sequence[Run]) -> Table | None:
    """Mean and standard deviation over runs that differ in their seed alone."""
    rows = []
    for arm in dict.fromkeys(r.arm for r in runs):
        mine = [r for r in runs if r.arm == arm]
        if len(mine) < 2:
            continue
        cells = []
        for moment in ("last", "chosen", "mean_last_10"):
            values = [f.test[r.metric] for r in mine if (f := r.result(moment)) and r.metric in f.test]
            unit = unit_of(mine[0].metric)
            cells.append(
                f"{number(statistics.mean(values), unit)} ± {number(statistics.stdev(values), unit)}"
                if len(values) > 1
                else "–"
            )
        rows.append([f"{arm} · {mine[0].view}", str(len(mine)), *cells])
    return Table(["", "seeds", "last round", "chosen by validation", "mean of last ten"], rows) if rows else None


def _drawn(runs: Sequence[Run]) -> list[tuple[Run, str, str]]:
    """(run, view, name): the curves to draw, those of one arm under one name."""
    return [(r, v, f"{r.arm} {v}" if len(r.views()) > 1 else r.arm) for r in runs for v in r.views()]


def _legend(runs: Sequence[Run]) -> list[tuple[int, bool, str]]:
    colours = _colours(runs)
    return list(
        dict.fromkeys((colours[r.arm], v == "global", f"{r.arm} · {v}" if v else r.arm) for r, v, _ in _drawn(runs))
    )


def _curves(runs: Sequence[Run]) -> list[Figure]:
    colours = _colours(runs)
    figures = []
    for metric in dict.fromkeys((runs[0].metric, "loss")):
        for split in ("test", "validation"):
            series: list[chart.Line] = []
            for run, view, name in _drawn(runs):
                if curve := run.curves.get(Series(split, view, "all", metric)):
                    label = "" if any(s.label == name for s in series) else name
                    series.append(
                        chart.Line(_entry(run, view), label, colours[run.arm], *curve, dashed=view == "global")
                    )
            if series:
                unit = unit_of(metric)
                title = f"{words(metric).capitalize()}, {split} data"
                label = f"{words(metric)}, %" if unit else f"{words(metric)} per example"
                svg = chart.lines(f"{metric}-{split}", title, series, y_label=label, percent=bool(unit))
                figures.append(Figure(title, svg, table=_curve_table(series, unit)))
    return figures


def _curve_table(series: Sequence[chart.Line], unit: str) -> Table:
    rounds = sorted({int(x) for s in series for x in s.x})
    every = -(-len(rounds) // 100)
    kept = [r for i, r in enumerate(reversed(rounds)) if i % every == 0][::-1]
    values = [dict(zip(s.x, s.y, strict=True)) for s in series]
    return Table(
        ["round", *(s.name for s in series)], [[str(r), *(number(v.get(r), unit) for v in values)] for r in kept]
    )


def _strips(runs: Sequence[Run]) -> Figure | None:
    colours, rows = _colours(runs), []
    for run in runs:
        if run.metric != "loss" and (own := run.clients.get((run.view, run.metric))):
            last = run.result("last")
            test = last.test if last is not None and last.round == own.round else {}
            mean = test.get(f"{run.metric}.mean", statistics.mean(own.values))
            worst = test.get(f"{run.metric}.worst_decile", float("nan"))
            rows.append(chart.Strip(_entry(run, run.view), colours[run.arm], own.values, mean, worst))
    if not rows:
        return None
    title = f"Test {words(runs[0].metric)} of every client, last round"
    few = max(len(r.values) for r in rows) <= ROWS
    note = "One dot is one client." if few else "The height of a bar is the number of clients."
    note += " Filled mark: plain mean over clients; hollow mark: mean of the worst tenth."
    return Figure(
        title,
        chart.strips("strips", title, rows, x_label=f"{words(runs[0].metric)} on the client’s own test data, %"),
        note,
    )


def _gains(runs: Sequence[Run], subject: Run, method: str) -> Figure | None:
    rows = pairs(runs, subject, method)
    run = baseline_of(runs, subject, method)
    if not rows or run is None:
        return None
    title = f"{subject.label} against {run.label}"
    better, worse, _ = count(rows)
    mean = number(statistics.fmean(g.after - g.before for g in rows), "points")
    note = f"{better} of {len(rows)} clients gain, {worse} lose{budgets(subject, run)}; mean gain {mean} points."
    if len(rows) <= ROWS:
        note += f" Ring: {run.label}; disc: {subject.label}."
        return Figure(title, chart.gains(f"gains-{method}", title, rows, before=run.label, after=subject.label), note)
    if len(rows) > DOTS:
        ordered = sorted(rows, key=lambda g: g.after - g.before)
        rows = [ordered[i] for i in np.linspace(0, len(ordered) - 1, DOTS).round().astype(int)]
        note += f" {DOTS} of {len(ordered)} clients are drawn, evenly spaced from largest loss to largest gain."
    return Figure(title, chart.gain_by_size(f"gains-{method}", title, rows), note)


def _gain_table(runs: Sequence[Run]) -> Table | None:
    rows = []
    for run in [r for r in runs if r.method not in BASELINES] or [subject_of(runs)]:
        for method, name in BASELINES.items():
            clients, base = pairs(runs, run, method), baseline_of(runs, run, method)
            if clients and base:
                gain = [g.after - g.before for g in clients]
                summaries = [number(f(gain), "points") for f in (statistics.fmean, min, max)]
                against = f"{run.label} against {name}{budgets(run, base)}"
                rows.append([against, *map(str, count(clients)), *summaries])
    return Table(["", "gain", "lose", "same", "mean", "least", "most"], rows) if rows else None


def _extremes(run: Run, many: int = 5) -> Table | None:
    """The clients with the lowest and the highest figures."""
    own = run.clients.get((run.view, run.metric))
    if own is None or len(own.ids) < 2 * many:
        return None
    ranked, size = sorted(zip(own.values, own.ids, strict=True)), sizes(run)

    def row(value: float, client: int) -> list[str]:
        return [f"client {client}", number(size.get(client), "count"), number(value, unit_of(run.metric))]

    rows = [["Lowest"], *(row(*p) for p in ranked[:many]), ["Highest"], *(row(*p) for p in reversed(ranked[-many:]))]
    return Table(["", "training examples", words(run.metric)], rows)


def _client_table(runs: Sequence[Run]) -> tuple[str, Table] | None:
    own = [(r, dict(zip(c.ids, c.values, strict=True))) for r in runs if (c := r.clients.get((r.view, r.metric)))]
    if not own:
        return None
    ids = sorted(set().union(*(values for _, values in own)))
    name = "Every client’s figures" if len(ids) <= TABLE else f"The figures of the first {TABLE} of {len(ids)} clients"
    shared = all(same_data(r, runs[0]) for r in runs)
    size = sizes(runs[0]) if shared else {}
    head = ["client", "training examples", *(_entry(r, r.view) for r, _ in own)]
    rows = [
        [str(k), number(size.get(k), "count"), *(number(v.get(k), unit_of(r.metric)) for r, v in own)]
        for k in ids[:TABLE]
    ]
    return name, Table(head, rows)


class _Partition(NamedTuple):
    figure: Figure
    facts: list[tuple[str, str]]


def _partitions(runs: Sequence[Run]) -> list[_Partition]:
    """One picture per distinct manifest, three at most."""
    distinct: dict[str, Run] = {}
    for run in runs:
        if run.histogram is not None:
            distinct.setdefault(run.manifest, run)
    return [_partition(i, run) for i, run in enumerate(list(distinct.values())[:3])]


def _partition(i: int, run: Run) -> _Partition:
    assert run.histogram is not None
    train = run.histogram[0]
    clients, classes = train.shape
    size = train.sum(1)
    names, note = list(range(clients)), "A dot’s area is the number of training examples."
    groups = [str(c) for c in range(classes)]
    if clients > ROWS:
        order = np.argsort(-size, kind="stable")
        names = [int(order[j]) for j in np.linspace(0, clients - 1, ROWS).round().astype(int)]
        note = f"{ROWS} of {clients} clients are drawn, evenly spaced from the largest to the smallest."
    shown = train[names]
    if classes > CLASSES:
        edges = np.linspace(0, classes, CLASSES // 2 + 1).round().astype(int)
        shown = np.add.reduceat(shown, edges[:-1], axis=1)
        groups = [f"{a}–{b - 1}" if b - a > 1 else str(a) for a, b in pairwise(edges.tolist())]
        note += f" The {classes} classes are drawn in {len(groups)} groups of neighbours."
    if shown.shape[1] > 28:
        note = note.replace("A dot’s area is", "The depth of a cell shows")
    title = f"Classes of {clients} clients" if clients <= ROWS else f"Classes of {ROWS} of {clients} clients"
    svg = chart.matrix(f"partition-{i}", title, shown, names, groups=groups)
    held = (train > 0).sum(1)
    facts = [
        ("Data", str(run.data.get("name", "–"))),
        *((f"Recipe: {k}", v) for k, v in flatten(run.recipe).items() if k),
        ("Clients", number(clients, "count")),
        *(
            (f"{s.capitalize()} examples", number(int(n), "count"))
            for s, n in zip(("training", "validation", "test"), run.histogram.sum((1, 2)), strict=True)
        ),
        (
            "Smallest, median, largest client",
            ", ".join(number(float(f(size)), "count") for f in (np.min, np.median, np.max)),
        ),
        (
            "Classes per client: fewest, median, most",
            ", ".join(f"{float(f(held)):g}" for f in (np.min, np.median, np.max)) + f" of {classes}",
        ),
        ("Manifest", run.manifest or "–"),
    ]
    table = None
    if classes <= 26 and clients <= TABLE:
        table = Table(
            ["client", *map(str, range(classes)), "all"],
            [[str(k), *map(str, row), str(row.sum())] for k, row in enumerate(train)],
        )
    return _Partition(Figure(title, svg, note, table), facts)


def _per_round(run: Run, metric: str) -> float | None:
    curve = run.curves.get(Series("run", "", "all", metric))
    return statistics.fmean(curve.values) if curve else None


def _bytes(runs: Sequence[Run]) -> Figure | None:
    rows = [
        chart.Bar(
            r.label,
            [("up", r.cost.get("bytes_up", 0.0)), ("down", r.cost.get("bytes_down", 0.0))],
            f"{number(r.cost.get('bytes_up'), 'B')} up, {number(r.cost.get('bytes_down'), 'B')} down",
        )
        for r in runs
        if "bytes_up" in r.cost or "bytes_down" in r.cost
    ]
    return Figure("Bytes over the whole run", chart.bars("bytes", "Bytes over the whole run", rows)) if rows else None


def _seconds(runs: Sequence[Run]) -> Figure | None:
    rows = []
    for run in runs:
        cost = {k.removeprefix("seconds."): v for k, v in run.cost.items() if k.startswith("seconds.")}
        if cost:
            total = cost.get("total", sum(cost.values()))
            parts = [("training", cost.get("training", 0.0)), ("evaluation", cost.get("evaluation", 0.0))]
            parts.append(("other", max(0.0, total - sum(v for _, v in parts))))
            rows.append(chart.Bar(run.label, parts, number(total, "s")))
    return Figure("Wall time", chart.bars("seconds", "Wall time", rows)) if rows else None


def _costs(runs: Sequence[Run]) -> Table:
    def row(name: str, unit: str, values: Iterable[float | None]) -> list[str]:
        return [name, *(number(v, unit) for v in values)]

    rows = [
        row("Bytes up, per round", "B", (_per_round(r, "bytes_up") for r in runs)),
        row("Bytes down, per round", "B", (_per_round(r, "bytes_down") for r in runs)),
        row("Bytes up, total", "B", (r.cost.get("bytes_up") for r in runs)),
        row("Bytes down, total", "B", (r.cost.get("bytes_down") for r in runs)),
        row("Training", "s", (r.cost.get("seconds.training") for r in runs)),
        row("Evaluation", "s", (r.cost.get("seconds.evaluation") for r in runs)),
        row("Wall time, total", "s", (r.cost.get("seconds.total") for r in runs)),
        row("Local steps", "count", (r.cost.get("steps") for r in runs)),
        row("Floating-point operations", "FLOP", (r.cost.get("flops") for r in runs)),
    ]
    return Table(["", *(r.label for r in runs)], rows)


def _wire(runs: Sequence[Run]) -> Table | None:
    rows = [
        [r.label, w.direction, w.channel, number(w.tensors, "count"), number(w.bytes, "B")]
        for r in runs
        for w in r.wire
    ]
    return Table(["run", "direction", "channel", "tensors", "bytes"], rows, words=3) if rows else None


def _settings(runs: Sequence[Run]) -> tuple[list[tuple[str, str]], Table | None]:
    """(what all runs share, what differs between them)."""
    told = [
        {
            "protocol": r.protocol,
            "buffers": r.buffers,
            "family": r.family,
            **flatten(r.settings),
            "model.parameters": number(r.model.get("parameters"), "count"),
            "executor": r.executor,
            "plan": r.plan,
            "manifest": r.manifest,
            **{
                f"version: {k}" if k in ("weft", "python", "torch") else f"machine: {k}": v
                for k, v in r.versions.items()
            },
        }
        for r in runs
    ]
    names = list(dict.fromkeys(k for t in told for k in t))
    shared = [(k, told[0][k]) for k in names if all(t.get(k) == told[0].get(k) for t in told) and told[0][k]]
    differing = [
        [k, *(t.get(k, "–") or "–" for t in told)] for k in names if any(t.get(k) != told[0].get(k) for t in told)
    ]
    return shared, Table(["", *(r.label for r in runs)], differing, words=len(runs) + 1) if differing else None


def _command(run: Run) -> str:
    return shlex.join(["weft", "run", run.method, "--config", f"{run.folder.name}/settings.yaml"])
