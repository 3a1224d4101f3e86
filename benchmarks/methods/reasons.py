"""Why two methods stand in another order here than a paper says.

What longer runs and the search show is computed from the table. What somebody has found out stands in
``explanations.yaml``: its figures are filled in from the table and from experiments, and its evidence is held against
them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from benchmarks.methods import experiments, search
from benchmarks.methods.claims import CLAIMS, Claim, Verdict, verdicts
from benchmarks.methods.settings import SETTINGS
from benchmarks.methods.table import Row, whole

from weft.core.errors import SettingError
from weft.core.registry import find
from weft.experiment.plugins import load_methods

PLACE = Path(__file__).parent / "explanations.yaml"
PERCENT = frozenset({"accuracy", "longer", "worst_decile", "last", "mean"})
FIGURES = PERCENT | {"lr", "value", "bytes_up"}


class Later(NamedTuple):
    """What became of an order in longer runs: it has turned, is even, or stays."""

    word: str
    text: str


class Explanation(NamedTuple):
    """A paragraph by hand about a claim, in some settings or in all, and inequalities of the table that it rests on."""

    claim: str
    text: str
    settings: tuple[str, ...] = ()
    evidence: tuple[str, ...] = ()

    def covers(self, v: Verdict) -> bool:
        """Whether it is about this claim on this setting."""
        return str(v.claim) == self.claim and (not self.settings or v.setting in self.settings)


class Doubt(NamedTuple):
    """A claim that does not hold here: in which settings, what is seen in each, and what somebody has found out."""

    claim: Claim
    places: list[tuple[Verdict, list[str]]]
    paragraphs: list[str]


def later(v: Verdict) -> Later | None:
    """What longer runs of one seed say of a disagreement; nothing before both are there.

    What one seed varies is taken from the runs of several seeds. An order is even if the difference has shrunk to less
    than half of it, and to what one seed varies.
    """
    assert v.first is not None and v.second is not None
    x, y = v.first.get("longer"), v.second.get("longer")
    if v.claim.figure != "accuracy" or x is None or y is None:
        return None
    before, now = (v.better or 0) - (v.worse or 0), x - y
    chance = 2 * sum((r.get("accuracy.se") or 0.0) ** 2 * (r.get("seeds") or 1) for r in (v.first, v.second)) ** 0.5
    said = f"After {search.LONGER} rounds it is {100 * x:.2f} against {100 * y:.2f} (one seed)"
    rounds = f"{v.first['rounds']:.0f}"
    if now > chance:
        return Later("turned", f"{said}, the order of the paper: {rounds} rounds are too few for it.")
    if now >= -chance and now > before / 2:
        varies = f"which is less than half of the difference, and within the {100 * chance:.2f} that one seed may make"
        return Later("even", f"{said}, {varies}: {rounds} rounds are too few to tell.")
    grown = "as far apart as before" if abs(now / before - 1) < 0.2 else "closer" if now > before else "further apart"
    gains = [f"{r['method']} has gained {100 * (r['longer'] - r['accuracy']):.1f}" for r in (v.first, v.second)]
    return Later("stays", f"{said}: the same order, {grown}; {' and '.join(gains)}.")


def edges(v: Verdict) -> str:
    """What the search has chosen at the end of what it tried, so that a wider one may find better; or nothing."""
    load_methods()
    said = []
    for row in (v.first, v.second):
        assert row is not None
        chosen = {"lr": (row.get("lr"), SETTINGS[v.setting].rates)}
        if row.get("value") not in ("", None):
            name, tried = search.PARAMETERS[row["method"]]
            chosen[name] = (row["value"], (*tried, find(row["method"]).options[name].default))
        ends = [f"{name} = {value} ({end})" for name, (value, tried) in chosen.items() if (end := _end(value, tried))]
        said += [f"{row['method']}'s {' and '.join(ends)}"] if ends else []
    return f"At the end of what the search tried: {', '.join(said)}." if said else ""


def _end(chosen: Any, tried: Sequence[Any]) -> str:
    if chosen is None or not all(isinstance(value, int | float) for value in tried):
        return ""
    return "least" if float(chosen) <= min(tried) else "most" if float(chosen) >= max(tried) else ""


def explanations(place: Path = PLACE) -> list[Explanation]:
    """What is in the file; `SettingError` for an entry that lacks a claim of ours or a text."""
    known, found = {str(c): c for c in CLAIMS}, []
    for entry in yaml.safe_load(place.read_text(encoding="utf-8")) or []:
        strange = set(entry) - set(Explanation._fields)
        if strange or entry.get("claim") not in known or not entry.get("text", "").strip():
            raise SettingError(
                f"{place.name}: {entry.get('claim')!r} is no claim of ours with a text, or has {strange}"
            )
        lists = {k: tuple(entry.get(k, ())) for k in ("settings", "evidence")}
        found.append(Explanation(entry["claim"], " ".join(entry["text"].split()), **lists))
    return found


def figure(said: str, rows: Sequence[Row]) -> float | str:
    """A figure by its words: ``mnist-dirichlet fedala``, then a view and a column if it is another one.

    Without them it is the accuracy of the view that the method is made for. An experiment stands for a setting.

    Raises:
        SettingError: neither the table nor an experiment has such a figure.
    """
    setting, method, *rest = said.split()
    column = rest.pop() if rest and rest[-1] in FIGURES else "accuracy"
    for row in (*rows, *experiments.load()):
        wanted = row["view"] == rest[0] if rest else row["headline"] == "yes"
        if wanted and (row["setting"], row["method"]) == (setting, method) and row.get(column) not in (None, ""):
            return row[column]
    raise SettingError(f"{PLACE.name} speaks of {said!r}, which neither the table nor an experiment has")


def filled(text: str, rows: Sequence[Row]) -> str:
    """The text with the figures that it names in braces."""

    def shown(match: re.Match[str]) -> str:
        value = figure(match[1], rows)
        if isinstance(value, str):
            return value
        return f"{100 * value:.2f}" if not {"lr", "bytes_up"} & set(match[1].split()) else f"{value:g}"

    return re.sub(r"\{([^{}]+)\}", shown, text)


def holds(evidence: str, rows: Sequence[Row]) -> bool:
    """Whether an inequality like ``mnist-dirichlet fedper > mnist-dirichlet fedala`` holds in the table."""
    left, sign, right = evidence.partition(" > ")
    if not sign:
        raise SettingError(f"{PLACE.name}: evidence {evidence!r} is no inequality: write it as A > B")
    return float(figure(left, rows)) > float(figure(right, rows))


def doubts(rows: Sequence[Row], known: Sequence[Explanation] | None = None) -> list[Doubt]:
    """All claims that do not hold somewhere, with what is known about why."""
    known = explanations() if known is None else known
    found: dict[str, Doubt] = {}
    for v in verdicts(rows):
        if v.word != "disagrees":
            continue
        doubt = found.setdefault(str(v.claim), Doubt(v.claim, [], []))
        seen = later(v)
        doubt.places.append((v, [said for said in (seen and seen.text, edges(v)) if said]))
        told = [filled(e.text, rows) for e in known if e.covers(v)]
        doubt.paragraphs.extend(t for t in told if t not in doubt.paragraphs)
    return list(found.values())


def complaints(rows: Sequence[Row], known: Sequence[Explanation] | None = None) -> list[str]:
    """What is missing or out of date, as sentences: an order without a reason, and a reason without an order.

    While settings are being run nobody is asked for the longer runs, and no explanation is called left over.
    """
    known = explanations() if known is None else known
    found, complete = verdicts(rows), set(whole(rows)) == set(SETTINGS)
    said = []
    for v in (v for v in found if v.word == "disagrees"):
        seen = later(v)
        if seen is None and v.claim.figure == "accuracy":
            said += [f"{v.claim} on {v.setting}: run `python -m benchmarks.methods --longer`"] if complete else []
        elif (seen is None or seen.word == "stays") and not any(e.covers(v) for e in known):
            said.append(f"{v.claim} on {v.setting}: nobody says why in {PLACE.name}")
    for e in known:
        words = [v.word for v in found if e.covers(v)]
        if "disagrees" not in words and (complete or "not run" not in words):
            said.append(f"{PLACE.name}: what it says of {e.claim} is left over, since papers are right")
        said += [f"{PLACE.name}: {line} does not hold any more" for line in e.evidence if not holds(line, rows)]
    return said
