"""Which figures are reported: the last round, the one chosen by validation, the mean of ten. No test figure chooses."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tests.experiment.small import DATA, RUN, archive, figures, source, weft

import weft as api
from weft.experiment.compare import validation_accuracy
from weft.experiment.folder import Rows
from weft.experiment.history import History
from weft.experiment.result import load
from weft.experiment.summary import _figures


def test_the_round_is_chosen_by_validation_where_the_test_would_choose_another() -> None:
    """Whoever learns fails this test, so its best round is an early one and validation's a later one."""
    data = api.federate(source(wrong_test=True, seed=5), clients=4, alpha=1.0, validation=0.3)
    found = api.run(api.fedavg(lr=0.003), data, model="logistic", rounds=12)
    rows = {(r["round"], r["split"]): r["value"] for r in found.history.to_pylist()
            if (r["group"], r["client"], r["metric"]) == ("all", -1, "accuracy")}  # fmt: skip
    by_test = max(range(1, 13), key=lambda n: rows[n, "test"])
    by_validation = max(range(1, 13), key=lambda n: (rows[n, "validation"], -n))
    assert by_test != by_validation and rows[by_test, "test"] > rows[by_validation, "test"] + 0.05
    said = found.summary["results"]["global"]
    assert said["chosen"]["round"] == by_validation and said["chosen"]["by"] == "validation accuracy"
    assert said["chosen"]["test"]["accuracy"] == rows[by_validation, "test"]
    assert said["last"]["round"] == 12 and said["last"]["test"]["accuracy"] == rows[12, "test"]
    assert said["mean_last_10"]["test"]["accuracy"] == pytest.approx(np.mean([rows[n, "test"] for n in range(3, 13)]))


def planted(test: list[float], validation: list[float | None]) -> History:
    rows = Rows()
    for i, (t, v) in enumerate(zip(test, validation, strict=True)):
        rows.add(i + 1, "test", "global", "all", {"accuracy": t, "loss": 1 - t})
        if v is not None:
            rows.add(i + 1, "validation", "global", "all", {"accuracy": v})
    history = History()
    history.add(rows.parts)
    return history


def test_no_test_figure_moves_the_choice() -> None:
    validation = [0.2, 0.9, 0.5, 0.9, 0.1]
    for seed in range(20):
        test = np.random.default_rng(seed).random(5).tolist()
        found = _figures(planted(test, validation), "global")
        assert found["chosen"]["round"] == 2  # the first of equals
        assert found["chosen"]["test"]["accuracy"] == test[1] and found["last"]["test"]["accuracy"] == test[4]
    assert "best" not in str(found)


def test_without_validation_nothing_is_chosen() -> None:
    found = _figures(planted([0.1, 0.2], [None, None]), "global")
    assert "chosen" not in found and found["last"]["round"] == 2


def test_a_search_chooses_on_validation_only(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The learning rate that learns wins, although its test accuracy is the worst."""
    data, out = archive(tmp_path / "data.npz", wrong_test=True), tmp_path / "sweep"
    words = [
        "sweep",
        "fedavg",
        "--grid",
        "lr=0.0001,0.1",
        "momentum=0,0.5",
        *RUN,
        "--quiet",
        "--data",
        data,
        "--out",
        out,
    ]
    assert weft(*words) == 0
    places = sorted(p for p in out.iterdir() if p.is_dir())
    assert [p.name for p in places] == [f"fedavg_lr{lr}_momentum{m}" for lr in ("0.0001", "0.1") for m in ("0", "0.5")]
    scores = {p.name: validation_accuracy(p) for p in places}
    tests = {p.name: load(p)["headline"]["value"] for p in places}
    best = max(scores, key=lambda n: scores[n])
    line = next(line for line in capsys.readouterr().out.splitlines() if "chosen on validation" in line)
    assert best in line and "lr0.1" in best and tests[best] == min(tests.values()) < max(tests.values())
    for name, place in zip(tests, places, strict=True):
        settings = (place / "settings.yaml").read_text()
        assert f"lr: {name.split('_')[1][2:]}" in settings


def test_settings_can_be_tried_with_several_seeds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["sweep", "fedavg", "--grid", "lr=0.001,0.1", "--seeds", "2", *RUN, "--quiet"]
    assert weft(*words, "--data", archive(tmp_path / "d.npz"), "--out", tmp_path / "s") == 0
    assert "2 seed(s) of each" in capsys.readouterr().out
    seeds = {p.name: load(p)["results"]["global"]["last"] for p in (tmp_path / "s").iterdir() if p.is_dir()}
    assert set(seeds) == {f"fedavg_lr{lr}-seed{s}" for lr in ("0.001", "0.1") for s in (0, 1)}
    assert seeds["fedavg_lr0.001-seed0"] != seeds["fedavg_lr0.001-seed1"]


def test_pooled_results_say_so(tmp_path: Path) -> None:
    words = ["compare", "fedavg", "local", *RUN, "--protocol", "pooled", "--quiet"]
    assert weft(*words, "--data", archive(tmp_path / "d.npz"), "--out", tmp_path / "c") == 0
    assert load(tmp_path / "c" / "fedavg")["protocol"] == "pooled"
    lines = (tmp_path / "c" / "table.csv").read_text().splitlines()
    place = lines[0].split(",").index("protocol")
    assert len(lines) == 3 and all(line.split(",")[place] == "pooled" for line in lines[1:])


def test_new_clients_have_figures_of_their_own(tmp_path: Path) -> None:
    words = ["run", "fedavg", *DATA, "--new-clients", "0.5", "--model", "logistic", "--rounds", "2", "--quiet"]
    assert weft(*words, "--data", archive(tmp_path / "d.npz"), "--out", tmp_path / "r") == 0
    found, said = figures(tmp_path / "r"), load(tmp_path / "r")["results"]["global"]
    assert said["new_clients"]["accuracy"] == found[2, "test", "global", "new", -1, "accuracy"]
    assert said["last"]["test"]["accuracy"] == found[2, "test", "global", "all", -1, "accuracy"]
    own = {g: {k[4] for k in found if k[1:4] == ("test", "global", g) and k[4] >= 0} for g in ("all", "new")}
    assert not own["all"] & own["new"] and own["new"]
