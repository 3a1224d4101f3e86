"""Experiments beside the leaderboard: what is changed in a setting, what is run, and what is kept of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from benchmarks.methods import experiments, settings, trials
from benchmarks.methods.experiments import Experiment
from tests.benchmarks.test_methods import TOY

from weft.core.errors import SettingError

SMALL = Experiment("fewer", "toy", "fedprox", {"lr": 0.1, "mu": 0.1}, {"clients": 2}, {"cohort": 0.5}, 1, 2)


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for module in (experiments, settings, trials):
        monkeypatch.setattr(module, "SETTINGS", {"toy": TOY})
    monkeypatch.setattr(experiments, "FIGURES", tmp_path / "experiments.csv")
    settings.network.cache_clear()


def test_a_setting_is_changed_in_parts(toy: None) -> None:
    changed = SMALL.changed()
    assert changed == replace(TOY, division={**TOY.division, "clients": 2}, run={**TOY.run, "cohort": 0.5}, rounds=1)


def test_what_has_no_figures_is_run_once(toy: None, capsys: pytest.CaptureFixture[str]) -> None:
    experiments.main([SMALL])
    (row,) = experiments.load()
    assert (row["setting"], row["method"], row["headline"], row["seeds"]) == ("fewer", "fedprox", "yes", 2)
    assert 0 < row["accuracy"] < 1 and row["accuracy.se"] >= 0
    assert capsys.readouterr().out.startswith("fewer fedprox: ")
    experiments.main([SMALL, SMALL._replace(method="fedavg", options={"lr": 0.1}, seeds=1)])
    assert capsys.readouterr().out.startswith("fewer fedavg: ")
    assert [(r["method"], r["accuracy.se"] is None) for r in experiments.load()] == [
        ("fedprox", False),
        ("fedavg", True),
    ]
    experiments.main([])
    assert not experiments.load()


def test_one_that_fails_is_said(toy: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trials, "run", lambda *given: {"error": "NotFinite: no"})
    with pytest.raises(SettingError, match="fewer fails: NotFinite"):
        experiments.main([SMALL])


@pytest.mark.parametrize("text", ["- {name: a, setting: nowhere, method: b, options: {}}", "- {name: a, setting: toy}"])
def test_an_entry_that_is_none_is_refused(toy: None, text: str, tmp_path: Path) -> None:
    (tmp_path / "e.yaml").write_text(text)
    with pytest.raises(SettingError, match=r"e\.yaml"):
        experiments.experiments(tmp_path / "e.yaml")


def test_all_have_figures_and_no_others_are_kept() -> None:
    wanted = {(e.name, e.method) for e in experiments.experiments()}
    assert {(r["setting"], r["method"]) for r in experiments.load()} == wanted, (
        "run `python -m benchmarks.methods.experiments` and commit what it writes"
    )
