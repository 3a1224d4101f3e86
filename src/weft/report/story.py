"""What happened, and what to beware of, in plain words that the numbers carry."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from weft.privacy.ledger import in_words
from weft.report.number import number
from weft.report.read import Run
from weft.report.versus import BASELINES, baseline_of, budgets, count, pairs, same_data, subject_of


def sentences(runs: Sequence[Run]) -> list[str]:
    """What happened, in plain words that the numbers carry.

    Runs that differ in their seed alone speak as one, by their mean.
    """
    subject = subject_of(runs)
    arms: dict[tuple[str, int], list[Run]] = {}
    for run in runs:
        last = run.result("last")
        if run.metric == subject.metric and last is not None and math.isfinite(last.test.get(run.metric, math.nan)):
            arms.setdefault((run.arm, run.rounds), []).append(run)
    mine = arms.pop((subject.arm, subject.rounds), [])
    if not mine:
        return [f"There are no test figures for the view “{subject.view}” of {subject.label} yet."]
    others = [arm for arm in arms.values() if {r.manifest for r in arm} == {r.manifest for r in mine} != {""}]
    of = "" if subject.finished else f" of {subject.planned}"
    first = f"After {subject.rounds}{of} rounds {_claim(mine)}"
    first += "" if subject.metric == "loss" else f" {words(subject.metric)}"
    first += " on the clients’ own test data"
    if 0 < len(others) <= 4:
        claims = [_claim(others[0]), *(f"{_who(arm[0])} {_mean(arm)}" for arm in others[1:])]
        when = [f" (after {arm[0].rounds} rounds)" if arm[0].rounds != subject.rounds else "" for arm in others]
        first += "; " + ", ".join(map(str.__add__, claims, when))
    elif others:
        first += f"; the other {len(others)} methods are in the table below"
    told = [f"{first}{', all under the pooled split' if subject.protocol == 'pooled' else ''}."]
    for method in BASELINES:
        if (rows := pairs(runs, subject, method)) and (base := baseline_of(runs, subject, method)):
            counts = zip(count(rows), ("gain", "lose", "stay the same"), strict=True)
            parts = [f"{n} {does}" for n, does in counts if n]
            which = f" ({subject.label})" if len(mine) > 1 else ""
            against = f"{_who(base)}{which}{budgets(subject, base)}"
            told.append(f"Of {len(rows)} clients, {joined(parts)} against {against}.")
    fresh = subject.result("new_clients")
    if fresh is not None and subject.metric in fresh.test:
        told.append(f"On clients never seen in training the figure is {_mean(mine, 'new_clients')}.")
    if others and max(map(len, [mine, *others])) == 1:
        told.append("Each setting ran once, so small differences may be chance.")
    return told


def _claim(arm: Sequence[Run]) -> str:
    run = arm[0]
    many = run.view == "personal" and run.method != "local"
    if run.metric == "loss":
        verb = "have a loss of" if many else "has a loss of"
    else:
        verb = "reach" if many else "reaches"
    return f"{_who(run)} {verb} {_mean(arm)}"


def _mean(arm: Sequence[Run], moment: str = "last") -> str:
    values = [r.test[run.metric] for run in arm if (r := run.result(moment)) and run.metric in r.test]
    several = f" (mean of {len(values)} runs)" if len(values) > 1 else ""
    return number(statistics.fmean(values), unit_of(arm[0].metric)) + several


def _who(run: Run) -> str:
    if run.method == "local" and run.arm == run.title:
        return BASELINES["local"]
    things = {"personal": "personal models", "global": "global model", "": "model"}
    return f"{run.arm}’s {things.get(run.view, f'view “{run.view}”')}"


def notices(runs: Sequence[Run]) -> list[tuple[str, str]]:
    """What a reader must know before believing a number: (heading, sentence)."""
    found = []
    for run in runs:
        if not run.finished:
            text = f"{run.label} stopped at round {run.rounds} of {run.planned}; its figures are not final."
            found.append(("Unfinished run", text))
    for run in runs:
        if run.privacy:
            found.append(("Differential privacy", f"{run.label}: {in_words(run.privacy)}."))
    if pooled := [r.label for r in runs if r.protocol == "pooled"]:
        text = (
            f"{joined(pooled)} merged the official training and test data before dividing them among clients."
            " Such figures compare only with tables made the same way, not with an official test split."
        )
        found.append(("Pooled protocol", text))
    if len({r.protocol for r in runs} - {""}) > 1:
        text = "These runs were not evaluated on the same kind of test data; do not rank them."
        found.append(("Different protocols", text))
    if not all(same_data(r, runs[0]) for r in runs):
        text = "The data manifests differ, so clients are compared only between runs that share one."
        found.append(("Different partitions", text))
    if len({r.rounds for r in runs}) > 1:
        text = f"The runs have different numbers of rounds: {joined([f'{r.label} {r.rounds}' for r in runs])}."
        found.append(("Unequal budgets", text))
    for run in runs:
        judged = [c for s, c in run.curves.items() if s.metric in (run.metric, "loss")]
        broken = [r for c in judged for r, v in zip(*c, strict=True) if not math.isfinite(v)]
        if broken:
            text = f"{run.label} has figures that are not finite numbers, first at round {min(broken)}."
            found.append(("Not a number", text))
    return found


def unit_of(metric: str) -> str:
    """The unit in which `number` writes `metric`: a loss has none, everything else is a fraction."""
    return "" if metric.partition(".")[0] == "loss" else "%"


def words(metric: str) -> str:
    """The name of `metric` as words."""
    return metric.replace("_", " ")


def entry(run: Run, view: str) -> str:
    """`run` and its `view` in one name."""
    return f"{run.label} · {view}" if view else run.label


def joined(names: Sequence[str]) -> str:
    """The names as in: a, b and c."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
