"""The comparison of methods on a toy: what it searches, resumes, ranks and claims."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from benchmarks.methods import claims, page, reasons, search, settings, table, trials
from benchmarks.methods.__main__ import main

import weft
from weft.core.errors import SettingError
from weft.core.registry import REGISTRY
from weft.experiment.plugins import load_methods

load_methods()
ROOT = Path(__file__).parents[2]
HOW = "run `python -m benchmarks.methods.page` and commit what it writes"
TOY = settings.Setting(
    "toy",
    "a toy",
    lambda: settings.thin(weft.load("mnist-10k"), 120, 60),
    {"partition": "iid", "clients": 3},
    "nearly all",
    model="logistic",
    rounds=2,
    batch_size=0,
)


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> str:
    """One setting, which takes no time."""
    monkeypatch.setattr(trials, "SETTINGS", {"toy": TOY})
    for module in (settings, table, page):
        monkeypatch.setattr(module, "SETTINGS", {"toy": TOY})
    settings.data.cache_clear()
    settings.network.cache_clear()
    return "toy"


def trial(accuracy: float, seed: int = 100, test: float = 0.5, **options: Any) -> dict[str, Any]:
    """A finished trial with this validation accuracy."""
    figures = dict.fromkeys(trials.FIGURES, test)
    return {
        "options": options,
        "seed": seed,
        "rounds": 1,
        "validation": accuracy,
        "view": "global",
        "source": "0",
        "views": {"global": {"chosen": figures, "last": figures}},
        "manifest": "m",
        "cost": {"bytes_up": 1.0, "bytes_down": 2.0, "steps": 3.0, "flops": 4.0, "seconds": 5.0},
    }


def put(out: Path, method: str, done: list[dict[str, Any]]) -> None:
    place = out / "toy" / method
    place.mkdir(parents=True)
    for t in done:
        (place / f"{trials.label(t)}.json").write_text(json.dumps(t))


def full(method: str, test: float) -> list[dict[str, Any]]:
    """All that a method needs on the toy."""
    rates = [trial(0.1, **o) for o in search.rates(TOY)]
    rates[1]["validation"] = 0.5
    near = [trial(0.2, **o) for o in search.neighbours(method, TOY, 0.1)]
    return [*rates, *near, *(trial(0.5, seed, test + seed / 100, lr=0.1) for seed in search.SEEDS)]


def test_what_was_interrupted_goes_on_and_nothing_runs_twice(toy: str, tmp_path: Path) -> None:
    chosen = trials.pairs([toy], ["fedprox"])
    first = trials.work(chosen, tmp_path)
    said = [next(first) for _ in range(3)]
    first.close()
    said += list(trials.work(chosen, tmp_path))
    assert len(said) == len(set(said)) == 8
    assert not list(trials.work(chosen, tmp_path))
    done = trials.read(tmp_path / toy / "fedprox").values()
    seeds, searched = ([t for t in done if (t["seed"] in search.SEEDS) == final] for final in (True, False))
    best = max(searched, key=lambda t: t["validation"])
    assert [t["rounds"] for t in searched] == [1] * 5 and [t["rounds"] for t in seeds] == [2] * 3
    assert all(t["options"] == best["options"] for t in seeds)
    (row,) = table.table(tmp_path, [toy], ["fedprox"])
    assert (row["seeds"], row["trials"], row["rank"]) == (3, 5, 1)
    assert row["accuracy"] == pytest.approx(sum(t["views"]["global"]["chosen"]["accuracy"] for t in seeds) / 3)


def test_parts_are_disjoint_and_whole() -> None:
    parts = [trials.pairs(part=(i, 3)) for i in (1, 2, 3)]
    assert len(parts[0]) + len(parts[1]) + len(parts[2]) == len(settings.SETTINGS) * len(REGISTRY)
    assert set(parts[0] + parts[1] + parts[2]) == set(trials.pairs())


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--part", "3/2"], "part"),
        (["--part", "x"], "part"),
        (["--settings", "nowhere"], "setting"),
        (["--methods", "fedavgg"], "fedavgg"),
    ],
)
def test_bad_input_is_one_sentence(
    words: list[str], named: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main([*words, "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert named in said and said.count("\n") == 1 and not (tmp_path / "out").exists()


def test_results_of_other_settings_are_refused(toy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    next(trials.work([("toy", "fedavg")], tmp_path))
    monkeypatch.setattr(trials, "SETTINGS", {"toy": replace(TOY, rounds=3)})
    with pytest.raises(SettingError, match="as it was before"):
        next(trials.work([("toy", "fedavg")], tmp_path))


def test_a_search_is_as_long_for_every_method() -> None:
    for setting in settings.SETTINGS.values():
        for name in REGISTRY:
            every = search.rates(setting) + search.neighbours(name, setting, setting.rates[1])
            assert len({json.dumps(o) for o in every}) == 5, name
            for options in every[-2:]:
                trials.make(name, search.fixed(name, setting.rounds) | options)
    assert set(search.PARAMETERS) <= set(REGISTRY)


def test_validation_alone_chooses() -> None:
    done = {trials.label(t): t for t in full("fedprox", 0.5)}
    for t in done.values():
        for figures in t["views"]["global"].values():
            figures |= dict.fromkeys(figures, 1 - t["validation"])
    assert trials.chosen(done) == {"lr": 0.1}
    del done["seed=1"]
    assert trials.following(TOY, "fedprox", done) == {"options": {"lr": 0.1}, "seed": 1, "rounds": 2}


def test_a_method_that_fails_stands_in_the_table(toy: str, tmp_path: Path) -> None:
    bad = [{**trial(0.0, **o), "error": "NotFinite: no"} for o in search.rates(TOY)]
    put(tmp_path, "fedprox", bad)
    put(tmp_path, "fedavg", full("fedavg", 0.5))
    half = full("moon", 0.5)
    half[-1] |= {"error": "NotFinite: late"}
    put(tmp_path, "moon", half)
    rows = {r["method"]: r for r in table.table(tmp_path, ["toy"], ["fedavg", "fedprox", "moon"])}
    assert rows["fedprox"]["failed"] == "every learning rate of the search: NotFinite: no"
    assert rows["moon"]["failed"] == "1 of 3 seeds: NotFinite: late" and rows["moon"]["seeds"] == 2
    assert [rows[m]["rank"] for m in ("fedavg", "fedprox", "moon")] == [1, None, None]


def test_only_whole_settings_are_ranked(toy: str, tmp_path: Path) -> None:
    put(tmp_path, "fedavg", full("fedavg", 0.5))
    put(tmp_path, "fedprox", full("fedprox", 0.6))
    whole = table.table(tmp_path, ["toy"], ["fedavg", "fedprox"])
    assert [r["rank"] for r in whole] == [2, 1]
    (tmp_path / "toy" / "fedprox" / "seed=2.json").unlink()
    (row,) = table.table(tmp_path, ["toy"], ["fedavg", "fedprox"])
    assert row["method"] == "fedavg" and row["rank"] is None
    assert row["accuracy"] == pytest.approx(0.51) and row["accuracy.se"] == pytest.approx(0.01 / 3**0.5)
    table.write(whole, tmp_path / "table.csv")
    assert table.whole(table.load(tmp_path / "table.csv")) == ["toy"]


def test_other_partitions_are_not_mixed(toy: str, tmp_path: Path) -> None:
    put(tmp_path, "fedavg", full("fedavg", 0.5))
    put(tmp_path, "fedprox", [t | {"manifest": "other"} for t in full("fedprox", 0.5)])
    with pytest.raises(SettingError, match="2 partitions"):
        table.table(tmp_path, ["toy"], ["fedavg", "fedprox"])


@pytest.mark.parametrize(
    ("better", "worse", "word"),
    [
        ((0.9, 0.01), (0.8, 0.01), "agrees"),
        ((0.8, 0.01), (0.9, 0.01), "disagrees"),
        ((0.81, 0.1), (0.8, 0.0), "within noise"),
    ],
)
def test_claims_are_judged_by_the_rows(better: tuple[float, float], worse: tuple[float, float], word: str) -> None:
    rows = [
        {"setting": "s", "method": m, "view": "v", "headline": "yes", "accuracy": a, "accuracy.se": e}
        for m, (a, e) in (("a", better), ("b", worse))
    ]
    claim = claims.Claim(claims.Side("a"), claims.Side("b"), ("s", "t"), "")
    here, there = claims.verdicts(rows, [claim])
    assert (here.word, there.word) == (word, "not run")


def test_an_order_in_doubt_is_run_for_longer(toy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    later = {"fedavg": 0.6, "fedprox": 0.7}
    monkeypatch.setattr(trials, "run", lambda setting, method, t: trial(0.5, test=later[method]) | t)
    for name, accuracy in (("fedavg", 0.5), ("fedprox", 0.3)):
        put(tmp_path, name, full(name, accuracy))

    def rows() -> list[table.Row]:
        return table.table(tmp_path, [toy], list(later))

    a, b = claims.Side("fedprox"), claims.Side("fedavg")
    claim = claims.Claim(a, b, (toy,), "")
    assert not claims.doubted(rows(), [claims.Claim(b, a, (toy,), "")])
    assert claims.doubted(rows(), [claim]) == [(toy, name) for name in later]
    assert len(list(trials.work(claims.doubted(rows(), [claim]), tmp_path, longer=True))) == 2
    assert trials.read(tmp_path / toy / "fedavg")["rounds=100"]["rounds"] == search.LONGER == 100
    (verdict,) = claims.verdicts(rows(), [claim])
    assert verdict.word == "disagrees" and reasons.later(verdict).text.startswith(  # type: ignore[union-attr]
        "After 100 rounds it is 70.00 against 60.00 (one seed), the order of the paper"
    )


def test_claims_name_what_there_is() -> None:
    for claim in claims.CLAIMS:
        assert set(claim.settings) <= set(settings.SETTINGS)
        for side in (claim.better, claim.worse):
            assert not side.view or side.view in REGISTRY[side.method].make().views


def test_methods_that_have_no_results_here_keep_their_rows(tmp_path: Path) -> None:
    before, out, place = table.load(), tmp_path / "out", tmp_path / "table.csv"
    table.write(before, place)
    assert table.renewed(out, place) == table.load(place) == before
    first = next(r for r in before if r["rank"] == 1)
    (out / first["setting"] / first["method"]).mkdir(parents=True)  # begun anew, and nothing is finished
    left = table.renewed(out, place)
    assert [r["method"] for r in left] == [
        r["method"] for r in before if (r["setting"], r["method"]) != (first["setting"], first["method"])
    ]
    assert not any(r["rank"] for r in left if r["setting"] == first["setting"])
    others = [r for r in before if r["setting"] != first["setting"]]
    assert [r for r in left if r["setting"] != first["setting"]] == others
