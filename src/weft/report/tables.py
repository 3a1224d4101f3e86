"""The tables of the report: results, gains, clients, costs and settings."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from weft.report.number import number
from weft.report.read import Run, Series, flatten
from weft.report.story import entry, unit_of, words
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
TABLE = 500


class Table(NamedTuple):
    """A table with `words` left-aligned columns; a row of one cell heads those below it."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    words: int = 1


def results(runs: Sequence[Run]) -> Table:
    """For each moment the four summaries over clients, and the loss."""
    rows: list[list[str]] = []
    streams = dict.fromkeys(r.moment for run in runs for r in run.results if r.moment.startswith("stream "))
    for moment, name in {**MOMENTS, **{s: f"Last round, test {s}" for s in streams}}.items():
        found = [(r, v, result) for r in runs for v in r.views() if (result := r.result(moment, v)) is not None]
        rows += [[name]] if found else []
        for run, view, result in found:
            at = f", round {result.round}" if moment == "chosen" and result.round is not None else ""
            figures = [number(result.test.get(run.metric + s), unit_of(run.metric)) for s in SUMMARIES]
            rows.append([entry(run, view) + at, *figures, number(result.test.get("loss"))])
    return Table(["", "weighted mean", "plain mean", "std", "worst tenth", "loss"], rows)


def seeds(runs: Sequence[Run]) -> Table | None:
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


def gains(runs: Sequence[Run]) -> Table | None:
    """How many clients gain over each baseline, and how much."""
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


def extremes(run: Run, many: int = 5) -> Table | None:
    """The clients with the lowest and the highest figures."""
    own = run.clients.get((run.view, run.metric))
    if own is None or len(own.ids) < 2 * many:
        return None
    ranked, size = sorted(zip(own.values, own.ids, strict=True)), sizes(run)

    def row(value: float, client: int) -> list[str]:
        return [f"client {client}", number(size.get(client), "count"), number(value, unit_of(run.metric))]

    rows = [["Lowest"], *(row(*p) for p in ranked[:many]), ["Highest"], *(row(*p) for p in reversed(ranked[-many:]))]
    return Table(["", "training examples", words(run.metric)], rows)


def every_client(runs: Sequence[Run]) -> tuple[str, Table] | None:
    """Every client’s figure under every run, `TABLE` clients at most, and what to call the table."""
    own = [(r, dict(zip(c.ids, c.values, strict=True))) for r in runs if (c := r.clients.get((r.view, r.metric)))]
    if not own:
        return None
    ids = sorted(set().union(*(values for _, values in own)))
    name = "Every client’s figures" if len(ids) <= TABLE else f"The figures of the first {TABLE} of {len(ids)} clients"
    shared = all(same_data(r, runs[0]) for r in runs)
    size = sizes(runs[0]) if shared else {}
    head = ["client", "training examples", *(entry(r, r.view) for r, _ in own)]
    rows = [
        [str(k), number(size.get(k), "count"), *(number(v.get(k), unit_of(r.metric)) for r, v in own)]
        for k in ids[:TABLE]
    ]
    return name, Table(head, rows)


def _per_round(run: Run, metric: str) -> float | None:
    curve = run.curves.get(Series("run", "", "all", metric))
    return statistics.fmean(curve.values) if curve else None


def costs(runs: Sequence[Run]) -> Table:
    """Bytes, time and work, one column per run."""

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


def wire(runs: Sequence[Run]) -> Table | None:
    """What one client sends and receives in one round, channel by channel."""
    rows = [
        [r.label, w.direction, w.channel, number(w.tensors, "count"), number(w.bytes, "B")]
        for r in runs
        for w in r.wire
    ]
    return Table(["run", "direction", "channel", "tensors", "bytes"], rows, words=3) if rows else None


def settings(runs: Sequence[Run]) -> tuple[list[tuple[str, str]], Table | None]:
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
