"""The list of all planted mistakes, as data and as a page."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from tests.mutants import beside, distillation, drift, engine, groups, mixtures, optimisation, personal
from tests.mutants.planting import COMMON, Mutant

PAGE = Path(__file__).parents[2] / "docs/mutants.md"
FAMILIES: dict[str, list[Mutant]] = {
    family: mutants
    for part in (optimisation, drift, personal, beside, mixtures, groups, distillation, engine)
    for family, mutants in part.FAMILIES.items()
}
MUTANTS = {f"{family}: {m.name}": m for family, mutants in FAMILIES.items() for m in mutants}


def page() -> str:
    """The page docs/mutants.md."""
    return "\n".join(_lines()) + "\n"


def _lines() -> Iterator[str]:
    yield "# Mistakes that the tests catch"
    yield ""
    seen = sum(m.seen != COMMON for m in MUTANTS.values())
    theirs = sum("PFLlib" in m.seen for m in MUTANTS.values())
    yield f"{len(MUTANTS)} mistakes are planted one at a time by `tests/mutants`; {seen} of them are on record in"
    yield f"public code, papers or threads, {theirs} of those in PFLlib, in bold. The others are common slips."
    yield "The check that is named passes as the code is, and fails with the mistake in it. A *law* is a"
    yield "[property](laws.md) that methods are held to, a *reference* the independent numpy version of a method, in"
    yield "the case of that name (`tests/methods`). This page is written by `python -m tests.mutants`."
    for family, mutants in FAMILIES.items():
        yield from ("", f"## {family}", "", "| mistake | seen in | caught by |", "|---|---|---|")
        for m in mutants:
            yield f"| {m.name} | {m.seen.replace('PFLlib', '**PFLlib**')} | {m.caught.said} |"
