"""Write docs/leaderboard and our figures in papers/: python -m benchmarks.methods.page [RESULTS], else from its CSV."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.methods import papers
from benchmarks.methods.claims import Verdict, verdicts
from benchmarks.methods.reasons import Doubt, complaints, doubts
from benchmarks.methods.search import SEEDS
from benchmarks.methods.settings import SETTINGS
from benchmarks.methods.table import PLACE, Row, kind, load, renewed, whole, write
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from weft.report.number import number

HERE = Path(__file__).parent
COLUMNS = (
    ("method", "method", False),
    ("rank", "rank", False),
    ("view", "view", True),
    ("family", "family", True),
    ("setting", "setting", True),
    ("accuracy", "accuracy", False),
    ("worst_decile", "worst tenth", False),
    ("last", "last round", False),
    ("lr", "learning rate", False),
    ("value", "parameter", True),
    ("bytes", "bytes", False),
    ("flops", "FLOPs", False),
    ("seconds", "seconds", False),
)


class Cell(NamedTuple):
    """What is shown, and what is sorted by."""

    text: str
    value: Any = ""
    word: bool = False
    more: str = ""


def percent(row: Row, figure: str) -> str:
    """A share in per cent with its standard error, in per cent too."""
    value, error = row.get(figure), row.get(f"{figure}.se")
    if value is None:
        return "–"
    return f"{100 * value:.2f}" + ("" if error is None else f" ± {100 * error:.2f}")


def cells(row: Row) -> list[Cell]:
    """The cells of a row, in the order of `COLUMNS`."""

    def plain(figure: str, unit: str = "") -> Cell:
        value = row.get(figure)
        return Cell("–" if value is None else number(value, unit), "" if value is None else value)

    def share(figure: str) -> Cell:
        return Cell(percent(row, figure), "" if row.get(figure) is None else row[figure])

    sent = None if row.get("bytes_up") is None else row["bytes_up"] + row["bytes_down"]
    searched = f"{row['parameter']} = {row['value']}" if row["value"] else "–"
    rate = row.get("lr")
    return [
        Cell(row["method"], row["method"]),
        plain("rank", "count"),
        Cell(row["view"] or "–", row["view"], True),
        Cell(row["family"], row["family"], True),
        Cell(row["setting"], row["setting"], True),
        share("accuracy"),
        share("worst_decile"),
        share("last"),
        Cell("–" if rate is None else f"{rate:g}", "" if rate is None else rate),
        Cell(searched, searched, True, row["failed"]),
        Cell(number(sent, "B"), "" if sent is None else sent),
        plain("flops", "FLOP"),
        plain("seconds", "s"),
    ]


def render(rows: Sequence[Row]) -> str:
    """The page as HTML: one file, which needs no network."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string((HERE / "leaderboard.html").read_text(encoding="utf-8"))
    complete = whole(rows)
    methods = list(dict.fromkeys(r["method"] for r in rows))
    there = [s for s in SETTINGS if any(r["setting"] == s for r in rows)]
    ordered = sorted(rows, key=lambda r: (there.index(r["setting"]), -(r.get("accuracy") or -1), r["method"]))
    chips = [
        ("Settings complete", f"{len(complete)} of {len(SETTINGS)}"),
        ("Methods", len(methods)),
        ("Seeds", len(SEEDS)),
    ]
    return template.render(
        style=Markup((resources.files("weft.report") / "style.css").read_text(encoding="utf-8")),
        methods=len(methods),
        chips=chips,
        missing=missing(rows),
        settings=[(s, SETTINGS[s].title) for s in there],
        families=sorted({r["family"] for r in rows}),
        columns=COLUMNS,
        rows=[
            {"kind": kind(r), "cells": cells(r), **{k: r[k] for k in ("setting", "family", "method")}} for r in ordered
        ],
        verdicts=[said(v) for v in verdicts(rows) if v.word != "not run"],
        doubts=[reasoned(d) for d in doubts(rows)],
        reasons=(HERE / "reasons.md").read_text(encoding="utf-8"),
        first=complete[0] if complete else "",
    )


def said(v: Verdict) -> dict[str, str]:
    """A verdict as words."""

    def figure(value: float | None) -> str:
        if value is None:
            return "–"
        return number(value, "B") if v.claim.figure.startswith("bytes") else f"{100 * value:.2f}"

    return {
        "text": str(v.claim),
        "setting": v.setting,
        "word": v.word,
        "better": figure(v.better),
        "worse": figure(v.worse),
        "source": v.claim.source,
    }


def reasoned(d: Doubt) -> dict[str, Any]:
    """A claim that does not hold here, as words: a line for each setting, then what somebody has found out."""
    lines = []
    for v, seen in d.places:
        w = said(v)
        error = f" ± {100 * v.error:.2f}" if v.error else ""
        text = " ".join([f"{w['better']} against {w['worse']}{error}.", *seen])
        lines.append({"setting": v.setting, "text": text})
    return {"text": str(d.claim), "source": d.claim.source, "lines": lines, "paragraphs": d.paragraphs}


def missing(rows: Sequence[Row]) -> str:
    """Which settings are not complete, and so not ranked; nothing if all are."""
    complete = whole(rows)
    open_ = [s for s in SETTINGS if s not in complete]
    if not open_:
        return ""
    counts = {s: len({r["method"] for r in rows if r["setting"] == s}) for s in open_}
    listed = ", ".join(f"{s} ({counts[s]} methods so far)" if counts[s] else f"{s} (none yet)" for s in open_)
    return f"Only settings in which every method has all seeds are ranked. Still to be run: {listed}."


def readme(rows: Sequence[Row]) -> str:
    """How the leaderboard was made, its best rows, and the claims of papers."""
    complete = whole(rows)
    found = verdicts(rows)
    run = [v for v in found if v.word != "not run"]
    counts = {w: sum(v.word == w for v in run) for w in ("agrees", "within noise", "disagrees")}
    lines = [
        "# Leaderboard",
        "",
        "Generated by `python -m benchmarks.methods.page`; do not edit. All figures are in [table.csv](table.csv);",
        "[index.html](index.html) sorts and filters them in a browser, offline.",
        "",
        f"**State:** {missing(rows) or 'complete.'}",
        "",
        (HERE / "notes.md").read_text().rstrip(),
        "",
        "## Settings",
        "",
        "| setting | data and clients | model | rounds | batch | learning rates | what was cut | state |",
        "| --- | --- | --- | --: | --: | --- | --- | --- |",
    ]
    for s in SETTINGS.values():
        tried = ", ".join(f"{r:g}" for r in s.rates)
        state = "complete" if s.name in complete else "not complete"
        lines.append(
            f"| `{s.name}` | {s.title} | {s.model} | {s.rounds} | {s.batch_size} | {tried} | {s.cut} | {state} |"
        )
    for name in complete:
        lines += ["", f"## {SETTINGS[name].title}", ""]
        for who, title in (
            ("own", "Answers with a model of the client's own"),
            ("common", "Answers with a common model"),
        ):
            lines += _best(rows, name, who, title)
    lines += [
        "",
        "## What papers say about the order",
        "",
        f"Computed from `table.csv`: {counts['agrees']} claims agree, {counts['within noise']} differences are within "
        f"two standard errors, {counts['disagrees']} disagree; {len(found) - len(run)} wait for their setting.",
        "",
        "| claim | setting | verdict | first | second | who says it |",
        "| --- | --- | --- | --: | --: | --- |",
    ]
    for v in run:
        w = said(v)
        lines.append(
            f"| {_escaped(w['text'])} | {w['setting']} | {w['word']} | {w['better']} | {w['worse']} | {w['source']} |"
        )
    return "\n".join([*lines, *_reasons(rows)]) + "\n"


def _reasons(rows: Sequence[Row]) -> list[str]:
    """The claims that do not hold here, each with what is known about why."""
    lines = ["", "## Where the order is another one, and why", ""]
    lines += (HERE / "reasons.md").read_text(encoding="utf-8").rstrip().splitlines()
    for d in map(reasoned, doubts(rows)):
        lines += ["", f"### {_escaped(d['text'])}", "", f"Said by: {d['source']}.", ""]
        lines += [f"- {line['setting']}: {_escaped(line['text'])}" for line in d["lines"]]
        lines += [part for text in d["paragraphs"] for part in ("", _escaped(text))]
    return lines


def _escaped(text: str) -> str:
    return text.replace("<", "&lt;").replace(">", "&gt;")


def _best(rows: Sequence[Row], name: str, who: str, title: str) -> list[str]:
    """The ranked rows of a setting and kind, and those that failed."""
    mine = [r for r in rows if r["setting"] == name and kind(r) == who]
    lines = [
        f"### {title}",
        "",
        "| rank | method | accuracy | worst tenth | last round | bytes | FLOPs | seconds | chosen |",
        "| --: | --- | --: | --: | --: | --: | --: | --: | --- |",
    ]
    for row in sorted(mine, key=lambda r: r["rank"] or 1e9):
        cell = {key: c for (key, _, _), c in zip(COLUMNS, cells(row), strict=True)}
        usual = row["view"] in ("global", "personal", "")
        options = f"lr = {cell['lr'].text}" + (f", {cell['value'].text}" if row["value"] else "")
        figures = [cell[k].text for k in ("accuracy", "worst_decile", "last", "bytes", "flops", "seconds")]
        called = row["method"] if usual else f"{row['method']} ({row['view']})"
        lines.append(f"| {cell['rank'].text} | {called} | {' | '.join(figures)} | {row['failed'] or options} |")
    return [*lines, ""]


def main(argv: Sequence[str]) -> None:
    if argv:
        write(renewed(Path(argv[0])))
    rows = load()
    (PLACE.parent / "index.html").write_text(render(rows), encoding="utf-8")
    (PLACE.parent / "README.md").write_text(readme(rows), encoding="utf-8")
    papers.renew(rows)
    print(f"{PLACE.parent}: {len(rows)} rows. {missing(rows)}")
    for line in complaints(rows):
        print(f"to do: {line}")


if __name__ == "__main__":
    main(sys.argv[1:])
