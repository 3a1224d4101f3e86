"""Why an order is another one than papers say: what is computed, and what is said by hand and must fit the table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from benchmarks.methods import claims, page, reasons, settings, table
from benchmarks.methods.reasons import Explanation

from weft.core.errors import SettingError

SCAFFOLD = next(c for c in claims.CLAIMS if str(c) == "scaffold > fedavg")
HERE = "mnist-dirichlet"


def row(method: str, accuracy: float, longer: float | None = None, **changed: Any) -> table.Row:
    """A row of the table, with chance of 0.01 for three seeds together."""
    found: table.Row = {"setting": HERE, "method": method, "view": "global", "headline": "yes", "family": "base"}
    found |= {"accuracy": accuracy, "accuracy.se": 0.01, "seeds": 3.0, "longer": longer, "rounds": 20.0, "rank": 1.0}
    return found | {"lr": 0.1, "parameter": "", "value": "", "failed": "", "bytes_up": 1.0, "bytes_down": 1.0} | changed


def disagreement(*after: float | None, **changed: Any) -> claims.Verdict:
    """SCAFFOLD is ten points below FedAvg; `after` are the two figures of longer runs."""
    rows = [row("scaffold", 0.7, after[0], **changed), row("fedavg", 0.8, after[1])]
    return next(v for v in claims.verdicts(rows, [SCAFFOLD]) if v.setting == HERE)


@pytest.mark.parametrize(
    ("after", "word", "said"),
    [
        ((0.9, 0.8), "turned", "90.00 against 80.00 (one seed), the order of the paper: 20 rounds are too few"),
        ((0.83, 0.8), "even", "within the 4.90 that one seed may make"),
        ((0.76, 0.8), "even", "less than half of the difference, and within the 4.90"),
        ((0.752, 0.8), "even", "within the 4.90"),
        ((0.765, 0.85), "stays", "as far apart as before"),
        ((0.75, 0.85), "stays", "the same order, as far apart as before; scaffold has gained 5.0 and fedavg has gai"),
        ((0.8, 0.87), "stays", "the same order, closer"),
        ((0.6, 0.85), "stays", "further apart; scaffold has gained -10.0"),
    ],
)
def test_what_longer_runs_say(after: tuple[float, float], word: str, said: str) -> None:
    found = reasons.later(disagreement(*after))
    assert found is not None and found.word == word and said in found.text


def test_longer_runs_say_nothing_before_both_are_there() -> None:
    assert reasons.later(disagreement(0.9, None)) is None and reasons.later(disagreement(None, 0.9)) is None


@pytest.mark.parametrize(
    ("chosen", "said"),
    [
        ({}, ""),
        ({"lr": 0.02}, "At the end of what the search tried: scaffold's lr = 0.02 (least)."),
        ({"lr": 0.5, "parameter": "eta_g", "value": "0.1"}, "scaffold's lr = 0.5 (most) and eta_g = 0.1 (least)."),
        ({"parameter": "eta_g", "value": "0.3"}, ""),
        ({"parameter": "eta_g", "value": "1.0"}, "scaffold's eta_g = 1.0 (most)."),  # the default
    ],
)
def test_the_ends_of_the_search_are_named(chosen: dict[str, Any], said: str) -> None:
    found = reasons.edges(disagreement(None, None, **chosen))
    assert found.endswith(said) and bool(found) == bool(said)


ROWS = [row("scaffold", 0.7, 0.75), row("fedavg", 0.8, 0.85), row("fedavg", 0.5, view="other", headline="no")]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{mnist-dirichlet fedavg} and {mnist-dirichlet fedavg longer}", "80.00 and 85.00"),
        ("{mnist-dirichlet fedavg other}; {mnist-dirichlet fedavg other accuracy}", "50.00; 50.00"),
        ("a rate of {mnist-dirichlet scaffold lr}", "a rate of 0.1"),
    ],
)
def test_figures_are_filled_in(text: str, said: str) -> None:
    assert reasons.filled(text, ROWS) == said


@pytest.mark.parametrize("said", ["mnist-dirichlet moon", "har-person fedavg", "mnist-dirichlet fedavg none"])
def test_a_figure_that_is_not_there_is_refused(said: str) -> None:
    with pytest.raises(SettingError, match=said):
        reasons.filled(f"It is {{{said}}}.", ROWS)


WHY = Explanation("scaffold > fedavg", "Few steps.", (HERE,), (f"{HERE} fedavg > {HERE} scaffold",))


def test_an_order_that_stays_needs_a_reason() -> None:
    stays = "scaffold > fedavg on mnist-dirichlet: nobody says why"
    assert [c for c in reasons.complaints(ROWS, []) if stays in c]
    assert not reasons.complaints(ROWS, [WHY])
    assert [c for c in reasons.complaints(ROWS, [WHY._replace(settings=("fashion-dirichlet",))]) if stays in c]
    turned = [row("scaffold", 0.7, 0.9), ROWS[1]]
    assert not reasons.complaints(turned, [])


def test_a_reason_without_an_order_is_left_over() -> None:
    right = [row("scaffold", 0.9), row("fedavg", 0.7)]
    said = reasons.complaints(right, [WHY._replace(evidence=())])
    assert len(said) == 1 and "left over" in said[0]
    somewhere = WHY._replace(settings=(), evidence=())
    assert not reasons.complaints(right, [somewhere]), "it may be wanted in a setting that has not been run"


def test_evidence_is_held_against_the_table() -> None:
    said = reasons.complaints(ROWS, [WHY._replace(evidence=(f"{HERE} scaffold > {HERE} fedavg longer",))])
    assert len(said) == 1 and "does not hold any more" in said[0]
    with pytest.raises(SettingError, match="no inequality"):
        reasons.holds(f"{HERE} scaffold", ROWS)


def test_longer_runs_are_asked_for_when_all_settings_are_there(monkeypatch: pytest.MonkeyPatch) -> None:
    new = [row("scaffold", 0.7), row("fedavg", 0.8)]
    assert not reasons.complaints(new, [WHY])
    monkeypatch.setattr(reasons, "SETTINGS", {HERE: settings.SETTINGS[HERE]})
    assert [c for c in reasons.complaints(new, [WHY]) if "--longer" in c]


def test_reasons_stand_on_the_page_and_in_the_text() -> None:
    shown = [page.reasoned(d) for d in reasons.doubts(ROWS, [WHY])]
    (line,) = shown[0]["lines"]
    assert line["setting"] == HERE and line["text"].startswith("70.00 against 80.00 ± 1.41. After 100 rounds")
    assert shown[0]["paragraphs"] == ["Few steps."]


@pytest.mark.parametrize(
    "text", ["- claim: a > b\n  text: x", "- claim: scaffold > fedavg", "- {claim: scaffold > fedavg, text: x, why: y}"]
)
def test_an_entry_that_is_none_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "e.yaml").write_text(text)
    with pytest.raises(SettingError, match=r"e\.yaml"):
        reasons.explanations(tmp_path / "e.yaml")


def test_every_order_in_doubt_has_a_reason_and_every_reason_its_order() -> None:
    """Of the committed table; what is missing is said by `python -m benchmarks.methods.page` too."""
    assert not reasons.complaints(table.load())
