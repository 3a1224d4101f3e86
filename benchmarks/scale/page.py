"""Write the page, its chart and its tables of figures from the results: ``python -m benchmarks.scale.page [HOME]``."""

from __future__ import annotations

import csv
import json
import sys
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np
from benchmarks.scale.memory import ROUNDS

from weft.experiment.run import GIVE_BACK
from weft.report import chart

HERE = Path(__file__).parent
KINDS = ("cohort", "rounds", "runs", "population")
WARM = 20
"""Runs after which it should."""

Row = dict[str, Any]
Results = Mapping[str, Row]
"""Part -> what was written of it."""


class Fit(NamedTuple):
    """Seconds of a round as a line in the clients of its cohort, by least squares of the relative deviations."""

    fixed: float
    each: float
    off: float  # the largest relative deviation ...
    at: int  # ... and the cohort that has it

    def __call__(self, cohort: float) -> float:
        return self.fixed + self.each * cohort


def fit(times: Mapping[int, float]) -> Fit:
    """The line through seconds by cohort."""
    cohorts, seconds = np.array(list(times)), np.array(list(times.values()))
    each, fixed = np.polyfit(cohorts, seconds, 1, w=1 / seconds)
    apart = np.abs((fixed + each * cohorts) / seconds - 1)
    return Fit(float(fixed), float(each), float(apart.max()), int(cohorts[apart.argmax()]))


def medians(rows: Iterable[Row], peer: str) -> dict[int, float]:
    """Cohort -> median seconds of its rounds."""
    return {row["cohort"]: median(row["seconds"]) for row in rows if row["peer"] == peer}


def drawn(rows: Sequence[Row]) -> str:
    """The chart of the rounds' cost."""
    ours, theirs = (medians(rows, peer) for peer in ("Weft", "plain loop"))
    line = fit(ours)
    law = f"{1000 * line.fixed:.2g} + {1000 * line.each:.2g} K"
    curves = [("Weft", ours), ("plain loop", theirs), (law, {k: line(k) for k in ours})]
    series = [
        chart.Line(name, name, colour, list(times), [1000 * s for s in times.values()], dashed=name == law)
        for (name, times), colour in zip(curves, (0, 1, 7), strict=True)
    ]
    title, x_label, y_label = "Cost of a round by cohort", "clients in the round, K", "training round, ms"
    made = chart.lines("cohort", title, series, y_label=y_label, percent=False, x_label=x_label, logarithmic=True)
    return chart.image(made)


def cohorts(results: Results) -> list[str]:
    """The section on the cost of a round."""
    rows = results["cohort"]["rows"]
    ours, theirs = (medians(rows, peer) for peer in ("Weft", "plain loop"))
    line, cells = fit(ours), []
    for row in (row for row in rows if row["peer"] == "Weft"):
        k, ms = row["cohort"], [1000 * s for s in row["seconds"]]
        spread = f"{median(ms):.4g} ({min(ms):.4g} to {max(ms):.4g})"
        lines = [f"{median(ms) / k:.3g}", f"{1000 * line(k):.4g}", f"{1000 * theirs[k]:.4g}"]
        cells.append([f"{k:,}", spread, *lines, f"{theirs[k] / ours[k]:.1f}", f"{len(ms)}"])
    law = f"{1000 * line.fixed:.2g} ms and {1000 * line.each:.3g} ms for each client"
    return [
        "## A round grows linearly in its cohort", "",
        "![Milliseconds of a round by cohort, both axes logarithmic](cohort.svg)", "",
        *said(
            "FedAvg, MLP 784-100-10, batch 10, one epoch, 1,000 clients; training rounds without evaluation, in ms:",
            f"median, least and greatest. The line is {law}; the median that is farthest from it is off by",
            f"{100 * line.off:.0f} %, at {line.at:,} client{'s' * (line.at > 1)}.",
            "The plain loop is that of the [speed benchmark](../speed/README.md).",
        ),
        *table(["cohort", "Weft", "each client", "line", "plain loop", "ratio", "rounds"], cells),
    ]  # fmt: skip


def rounds(results: Results) -> list[str]:
    """The section on many rounds."""
    cells, when = [], range(GIVE_BACK, ROUNDS + 1, GIVE_BACK)
    for part, found in results.items():
        at = {row["round"]: row for row in found["rows"]}
        used, after = ([at[n][what] for n in when] for what in ("used", "resident"))
        most = [max(at[n]["resident"] for n in range(end - GIVE_BACK + 1, end + 1)) for end in when]
        method = part.removeprefix("rounds-")
        for name, values in (("in use", used), ("after", after), ("most before", most)):
            slope, start = np.polyfit(when, values, 1)
            grown = slope * (when[-1] - when[0]) / (start + slope * when[0])
            cells.append([f"{method}, {name}", *(f"{v:.1f}" for v in values), f"{100 * grown:+.2f} %"])
    return [
        f"## {when[-1]} rounds", "",
        *said(
            "Memory in MiB. MLP, 10 of 100 unequal clients in a round, evaluation and checkpoint every 10 rounds, a",
            f"run folder. Every {GIVE_BACK} rounds a run lets the system have freed memory; `in use` is what the",
            "allocator has given out then, `after` what is resident then, and `most before` the most that was resident",
            f"in the {GIVE_BACK} rounds before, with what rounds need for themselves. The last column is by how much",
            "the straight line through them rises. `after` goes up and down by a block of some MiB: each thread's part",
            "of the allocator keeps its last one. It is level with `MALLOC_ARENA_MAX=1`.",
        ),
        *table(["after round", *map(str, when), "grown"], cells),
    ]  # fmt: skip


def runs(results: Results) -> list[str]:
    """The section on many runs."""
    at = {row["run"]: row for row in results["runs"]["rows"]}
    seen, later = [1, *range(WARM, len(at) + 1, 20)], [n for n in at if n >= WARM]
    slope = 1024 * np.polyfit(later, [at[n]["resident"] for n in later], 1)[0]
    labels = {"resident": "resident memory, MiB", "tensors": "tensors", "threads": "threads", "files": "open files"}
    labels["folders"] = "temporary folders"
    cells = [[label, *(f"{at[n][key]:.5g}" for n in seen)] for key, label in labels.items()]
    return [
        f"## {len(at)} runs in one process", "",
        *said(
            f"Five methods with four shapes each, 3 rounds, every other run with a folder; after {WARM} runs all were",
            f"there, and resident memory changes by {slope:+.0f} KiB a run (least squares). The tensors are those of",
            "traced steps, which are kept for the next run.",
        ),
        *table(["after run", *map(str, seen)], cells),
    ]  # fmt: skip


def populations(results: Results) -> list[str]:
    """The section on large populations."""
    rows = [(part.split("-")[1], found["rows"][0]) for part, found in results.items()]
    few = min(row["clients"] for _, row in rows)
    base, cells = {method: row["peak"] for method, row in rows if row["clients"] == few}, []
    for method, row in rows:
        more = row["peak"] - base[method]
        memory = [f"{row['peak']:.0f}", f"{more:+.0f} ({100 * more / base[method]:+.1f} %)", f"{row['indices']:.1f}"]
        seconds = (row[part] for part in ("federate", "prepare", "training", "evaluation", "checkpoint"))
        cells.append([f"{method}, {row['clients']:,}", *memory, f"{row['folder']:.0f}", *(f"{s:.2f}" for s in seconds)])
    examples = rows[0][1]["examples"]
    head = ["clients", "peak", f"more than {few:,}", "indices", "folder", "divide", "begin", "train", "judge", "keep"]
    return [
        "## Large populations", "",
        *said(
            "Logistic regression on 784 features, 100 clients in a round, 10 rounds, everybody judged twice, a run",
            "folder and a checkpoint every round. Memory in MiB, time in seconds. In memory are",
            f"{examples:.0f} MiB of examples for any population; the smaller ones divide a part of them. Indices say",
            "who has which. Begin is all between the data and the first round, keep is metrics and checkpoints.",
        ),
        *table(head, cells),
    ]  # fmt: skip


def machines(results: Results) -> list[str]:
    """On what it was measured."""
    told = {json.dumps([r["machine"], r["versions"]]): r for r in results.values()}
    days = sorted({r["started"][:10] for r in results.values()})
    lines = []
    for r in told.values():
        m, packages = r["machine"], ", ".join(f"{k} {v}" for k, v in r["versions"].items())
        lines.append(f"- {m['processor']}, {m['cores']} cores, {m['memory_gib']} GiB, {m['system']}; {packages}")
    return ["## Machine", "", *lines, f"- {' to '.join(dict.fromkeys((days[0], days[-1])))}", ""]


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """A Markdown table whose first column is words."""
    lines = [head, ["---"] + ["--:"] * (len(head) - 1), *rows]
    return ["| " + " | ".join(line) + " |" for line in lines] + [""]


def said(*parts: str) -> list[str]:
    """A paragraph."""
    return [textwrap.fill(" ".join(parts), 120), ""]


def page(results: Results) -> str:
    """The page in Markdown, of what has been measured."""
    about = "`make bench-scale` measures it and writes this page; `cohort.csv` and `memory.csv` have all figures."
    lines = ["# Scale", "", about, ""]
    for kind, section in zip(KINDS, (cohorts, rounds, runs, populations), strict=True):
        found = {part: r for part, r in results.items() if part.split("-")[0] == kind}
        lines += section(found) if found else []
    return "\n".join([*lines, *machines(results)]).rstrip() + "\n"


def read(home: Path) -> dict[str, Row]:
    """All results there are, in the order of the page."""
    found = {r["part"]: r for r in (json.loads(p.read_text()) for p in (home / "results").glob("*.json"))}

    def place(part: str) -> tuple[Any, ...]:
        kind, *more = part.split("-")
        return KINDS.index(kind), *(int(word) if word.isdigit() else word for word in more)

    return {part: found[part] for part in sorted(found, key=place)}


def write_csv(place: Path, head: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Rows of figures."""
    with place.open("w", newline="") as file:
        out = csv.writer(file, lineterminator="\n")
        out.writerow(head)
        out.writerows([float(f"{x:.6g}") if isinstance(x, float) else x for x in row] for row in rows)


def write(results: Results, folder: Path) -> None:
    """All files of the page."""
    if found := results.get("cohort"):
        timed = ([r["peer"], r["cohort"], n, s] for r in found["rows"] for n, s in enumerate(r["seconds"], 1))
        write_csv(folder / "cohort.csv", ["peer", "cohort", "round", "seconds"], timed)
        (folder / "cohort.svg").write_text(drawn(found["rows"]))
    rows = [(part, i, row) for part, r in results.items() if part != "cohort" for i, row in enumerate(r["rows"], 1)]
    each = ([part, i, what, value] for part, i, row in rows for what, value in row.items())
    write_csv(folder / "memory.csv", ["part", "row", "what", "value"], each)
    (folder / "README.md").write_text(page(results))


def main() -> None:
    """Write them from the results of HOME."""
    home = Path(sys.argv[1]) if len(sys.argv) > 1 else Path("runs/scale")
    results = read(home)
    if not results:
        raise SystemExit(f"{home} holds no results: run python -m benchmarks.scale first")
    write(results, HERE)


if __name__ == "__main__":
    main()
