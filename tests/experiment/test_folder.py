"""The run folder: what is in it, in which form, and that it can be read at any moment."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
import yaml
from safetensors import safe_open
from tests.experiment.small import RUN, archive, figures, source, weft

import weft as api
from weft.evaluation.metrics import over_clients
from weft.experiment import checkpoint
from weft.experiment.account import PARTS
from weft.experiment.folder import SCHEMA, RunFolder
from weft.experiment.result import load


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of Ditto."""
    home = tmp_path_factory.mktemp("folder")
    words = ["run", "ditto", *RUN, "--cohort", "2", "--new-clients", "0.2", "--quiet"]
    assert weft(*words, "--data", archive(home / "data.npz"), "--out", home / "run") == 0
    return home / "run"


def test_what_there_is(done: Path) -> None:
    kept = ["checkpoint", "manifest.json", "metrics.parquet", "report.html", "settings.yaml"]
    assert sorted(p.name for p in done.iterdir()) == [*kept, "status.json", "summary.json"]
    assert sorted(p.name for p in (done / "checkpoint").iterdir()) == ["round-000003", "round-000004"]
    assert sorted(p.name for p in (done / "checkpoint" / "round-000004").iterdir()) == [
        "state.json",
        "state.safetensors",
    ]


def test_metrics_are_one_long_table(done: Path) -> None:
    table = pyarrow.parquet.read_table(done / "metrics.parquet")  # the folder as one table, by any reader
    assert table.schema.equals(SCHEMA) and len(table) == len(RunFolder(done).metrics())
    assert set(table["round"].to_pylist()) == {1, 2, 3, 4}
    assert set(table["split"].to_pylist()) == {"validation", "test", "run"}
    assert set(table["view"].to_pylist()) == {"global", "personal", ""}
    assert set(table["group"].to_pylist()) == {"all", "participating", "absent", "new"}
    run = {k[-1] for k in figures(done) if k[1] == "run"}
    assert run == {"bytes_up", "bytes_down", "steps", "flops"}
    full = {k[-1] for k in figures(done) if k[:3] == (4, "test", "global") and k[4] >= 0}
    assert full == {"accuracy", "loss", "balanced_accuracy", "macro_f1", "auc"}
    assert {k[-1] for k in figures(done) if k[:3] == (3, "test", "global") and k[4] >= 0} == {"accuracy", "loss"}


def test_figures_over_clients_are_those_of_the_clients(done: Path) -> None:
    counts = np.array(json.loads((done / "manifest.json").read_text())["counts"]["test"])
    found = figures(done)
    for number, view in ((1, "global"), (4, "personal")):
        head = (number, "test", view, "all")
        own = {k[4]: v for k, v in found.items() if k[:4] == head and k[4] >= 0 and k[5] == "accuracy"}
        again = over_clients(counts[list(own)], {"accuracy": np.array(list(own.values()))})
        assert again == pytest.approx({k[5]: v for k, v in found.items() if k[:5] == (*head, -1) and k[5] in again})


def test_texts_are_readable(done: Path) -> None:
    note = yaml.safe_load((done / "settings.yaml").read_text())
    assert list(note) == ["method", "data", "run"] and note["method"]["name"] == "ditto"
    assert note["method"]["opt"]["lr"] == 0.05 and note["run"]["cohort"] == 2 and note["data"]["alpha"] == 1
    summary, manifest = load(done), json.loads((done / "manifest.json").read_text())
    assert summary["data"]["manifest"] == manifest["hash"] == note["data"]["manifest"]
    assert summary["finished"] and summary["rounds"] == 4 and summary["model"] == {"name": "logistic", "parameters": 15}
    assert {r: summary["data"][r] for r in ("train", "validation", "test")} == {
        r: sum(manifest["counts"][r]) for r in ("train", "validation", "test")
    }
    assert summary["headline"] == {
        "view": "personal",
        "metric": "accuracy",
        "value": figures(done)[4, "test", "personal", "all", -1, "accuracy"],
    }


def test_costs_add_up(done: Path) -> None:
    found, cost = figures(done), load(done)["cost"]
    for name in ("bytes_up", "bytes_down", "steps", "flops"):
        assert cost[name] == sum(found[n, "run", "", "all", -1, name] for n in range(1, 5)) > 0
    seconds = cost["seconds"]
    assert seconds["total"] == pytest.approx(sum(seconds[part] for part in PARTS))
    assert seconds["training"] == pytest.approx(seconds["data"] + seconds["local"] + seconds["aggregation"])
    assert min(seconds[part] for part in ("data", "local", "aggregation", "evaluation", "checkpoint")) > 0


def test_checkpoints_are_safetensors_and_json(done: Path) -> None:
    place = checkpoint.latest(done)
    assert place is not None
    note = json.loads((place / "state.json").read_text())
    with safe_open(place / "state.safetensors", "pt") as file:
        shapes = {tuple(file.get_slice(k).get_shape()) for k in file.keys()}  # noqa: SIM118
    assert note["round"] == 4 and {(3, 4), (3,), (4,)} <= shapes  # weights, biases, turns of the four clients


def test_metrics_can_be_read_while_the_run_goes_on(tmp_path: Path) -> None:
    out, seen = tmp_path / "run", []

    def look(report: Any) -> None:
        table = pyarrow.parquet.read_table(out / "metrics.parquet")
        summary = load(out)
        seen.append((max(table["round"].to_pylist()), summary["rounds"], summary["finished"]))
        assert summary["results"]["global"]["last"]["round"] == report.number

    api.run("fedavg", api.federate(source(), clients=4), model="logistic", rounds=3, out=out, tell=look)
    assert seen == [(1, 1, False), (2, 2, False), (3, 3, True)]


def test_without_a_folder_the_history_is_the_same(tmp_path: Path) -> None:
    data = api.federate(source(), clients=4)
    a = api.run("fedavg", data, model="logistic", rounds=2)
    b = api.run("fedavg", data, model="logistic", rounds=2, out=tmp_path / "run")
    assert a.accuracy == b.accuracy and a.summary["results"] == b.summary["results"]

    def over(table: pa.Table) -> list[Any]:
        rows = [tuple(r.values()) for r in table.to_pylist() if r["client"] == -1 and "seconds" not in r["metric"]]
        return sorted(rows, key=str)

    assert over(a.history) == over(b.history)


def test_a_predictor_answers_as_the_run_was_judged() -> None:
    data = api.federate(source(), clients=4)
    result = api.run("ditto", data, model="logistic", rounds=2)
    for view, client in (("personal", 2), ("global", None)):
        rows = data.test.client(2)
        right = result.predictor(client, view)(data.source.x[rows]).argmax(1) == data.source.y[rows]
        told = result.history.filter(
            (pa.compute.field("client") == 2)
            & (pa.compute.field("view") == view)
            & (pa.compute.field("metric") == "accuracy")
            & (pa.compute.field("split") == "test")
            & (pa.compute.field("round") == 2)
        )
        assert not len(told) or right.mean() == told["value"][0].as_py()
