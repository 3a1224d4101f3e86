"""The report: one HTML file from run folders, readable without a network and without scripts."""

from __future__ import annotations

import os
import shlex
import tempfile
from collections.abc import Iterable, Sequence
from importlib import resources
from pathlib import Path
from typing import NamedTuple

import yaml
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from weft.core.errors import SettingError
from weft.report import figures, tables
from weft.report.number import number
from weft.report.read import Run, read_runs
from weft.report.story import entry, joined, notices, sentences, unit_of, words
from weft.report.versus import BASELINES, subject_of


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
    shared, differing = tables.settings(runs)
    return template.render(
        style=Markup((folder / "style.css").read_text(encoding="utf-8")),
        title=_heading(runs),
        chips=_chips(runs),
        sentences=sentences(runs),
        notices=notices(runs),
        tiles=_tiles(runs, subject),
        metric=words(subject.metric),
        results=tables.results(runs),
        seeds=tables.seeds(runs),
        legend=figures.legend(runs),
        curves=figures.curves(runs),
        spread=figures.strips(runs),
        gains=[f for b in BASELINES if (f := figures.gains(runs, subject, b)) is not None],
        gain_table=tables.gains(runs),
        extremes=tables.extremes(subject),
        clients=tables.every_client(runs),
        partitions=figures.partitions(runs),
        bytes=figures.bytes_moved(runs),
        seconds=figures.seconds(runs),
        costs=tables.costs(runs),
        wire=tables.wire(runs),
        shared=shared,
        differing=differing,
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
    colours = figures.colours(runs)
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
            tiles.append(_Tile(colours[run.arm], entry(run, view), number(last.test.get(run.metric), unit), notes))
    return tiles


def _command(run: Run) -> str:
    return shlex.join(["weft", "run", run.method, "--config", f"{run.folder.name}/settings.yaml"])
