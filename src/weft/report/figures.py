"""The figures of the report: each chart with what to see in it, and its numbers."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from markupsafe import Markup

from weft.report import chart
from weft.report.number import number
from weft.report.read import Run, Series, flatten
from weft.report.story import entry, unit_of, words
from weft.report.tables import TABLE, Table
from weft.report.versus import baseline_of, budgets, count, pairs

ROWS = 60
CLASSES = 100
DOTS = 1500


class Figure(NamedTuple):
    """A chart, what to see in it, and its numbers."""

    title: str
    svg: Markup
    note: str = ""
    table: Table | None = None


def colours(runs: Sequence[Run]) -> dict[str, int]:
    """The colour of every arm."""
    return {arm: i % chart.COLOURS for i, arm in enumerate(dict.fromkeys(r.arm for r in runs))}


def _drawn(runs: Sequence[Run]) -> list[tuple[Run, str, str]]:
    """(run, view, name): the curves to draw, those of one arm under one name."""
    return [(r, v, f"{r.arm} {v}" if len(r.views()) > 1 else r.arm) for r in runs for v in r.views()]


def legend(runs: Sequence[Run]) -> list[tuple[int, bool, str]]:
    """(colour, whether dashed, name) of every curve."""
    colour = colours(runs)
    return list(
        dict.fromkeys((colour[r.arm], v == "global", f"{r.arm} · {v}" if v else r.arm) for r, v, _ in _drawn(runs))
    )


def curves(runs: Sequence[Run]) -> list[Figure]:
    """One chart per metric and split."""
    colour = colours(runs)
    figures = []
    for metric in dict.fromkeys((runs[0].metric, "loss")):
        for split in ("test", "validation"):
            series: list[chart.Line] = []
            for run, view, name in _drawn(runs):
                if curve := run.curves.get(Series(split, view, "all", metric)):
                    label = "" if any(s.label == name for s in series) else name
                    series.append(chart.Line(entry(run, view), label, colour[run.arm], *curve, dashed=view == "global"))
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


def strips(runs: Sequence[Run]) -> Figure | None:
    """Every client’s figure in the last round, one strip per run."""
    colour, rows = colours(runs), []
    for run in runs:
        if run.metric != "loss" and (own := run.clients.get((run.view, run.metric))):
            last = run.result("last")
            test = last.test if last is not None and last.round == own.round else {}
            mean = test.get(f"{run.metric}.mean", statistics.mean(own.values))
            worst = test.get(f"{run.metric}.worst_decile", float("nan"))
            rows.append(chart.Strip(entry(run, run.view), colour[run.arm], own.values, mean, worst))
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


def gains(runs: Sequence[Run], subject: Run, method: str) -> Figure | None:
    """What each client gains by `subject` over the baseline `method`."""
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


class Partition(NamedTuple):
    """A picture of a partition, and its facts."""

    figure: Figure
    facts: list[tuple[str, str]]


def partitions(runs: Sequence[Run]) -> list[Partition]:
    """One picture per distinct manifest, three at most."""
    distinct: dict[str, Run] = {}
    for run in runs:
        if run.histogram is not None:
            distinct.setdefault(run.manifest, run)
    return [_partition(i, run) for i, run in enumerate(list(distinct.values())[:3])]


def _partition(i: int, run: Run) -> Partition:
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
    return Partition(Figure(title, svg, note, table), facts)


def bytes_moved(runs: Sequence[Run]) -> Figure | None:
    """Bytes up and down, one bar per run."""
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


def seconds(runs: Sequence[Run]) -> Figure | None:
    """Wall time by what it went into, one bar per run."""
    rows = []
    for run in runs:
        cost = {k.removeprefix("seconds."): v for k, v in run.cost.items() if k.startswith("seconds.")}
        if cost:
            total = cost.get("total", sum(cost.values()))
            parts = [("training", cost.get("training", 0.0)), ("evaluation", cost.get("evaluation", 0.0))]
            parts.append(("other", max(0.0, total - sum(v for _, v in parts))))
            rows.append(chart.Bar(run.label, parts, number(total, "s")))
    return Figure("Wall time", chart.bars("seconds", "Wall time", rows)) if rows else None
