"""Streams are judged in their order, own and others' examples apart, and choose nothing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.experiment.small import source

import weft
from weft.core import Net, View, method
from weft.core.kept import Kept
from weft.core.method import Method
from weft.core.registry import REGISTRY
from weft.data.federate import federate
from weft.data.streams import with_streams
from weft.evaluation import protocol
from weft.evaluation.answers import answer
from weft.methods.fedavg import fedavg
from weft.report.read import read_runs

RUN = {"rounds": 2, "model": "logistic", "batch_size": 20}


def test_figures_of_streams_are_those_of_their_examples() -> None:
    data = with_streams(federate(source(), clients=4, alpha=0.3), ["switch", "external"])
    result = weft.run("fedavg", data, **RUN)
    said = result.summary["results"]["global"]["streams"]
    assert set(said) == {"switch", "switch/own", "switch/others", "external"}
    predict = result.predictor()
    right = predict(data.source.x).argmax(1) == data.source.y
    for name, figures in said.items():
        stream = data.streams[name.partition("/")[0]]
        part = {"own": ~stream.foreign, "others": stream.foreign}.get(name.partition("/")[2], slice(None))
        assert abs(figures["accuracy"] - right[stream.rows.rows[part]].mean()) < 1e-9
    test = result.summary["results"]["global"]["last"]["test"]
    assert abs(said["switch/own"]["accuracy"] - test["accuracy"]) < 1e-9


def test_streams_change_no_other_figure() -> None:
    data = federate(source(), clients=4, alpha=0.3)
    plain, more = weft.run("fedavg", data, **RUN), weft.run("fedavg", with_streams(data, ["mixture"]), **RUN)
    bare = dict(more.summary["results"]["global"])
    bare.pop("streams")
    assert bare == plain.summary["results"]["global"]


def test_a_view_that_learns_on_the_way_sees_examples_in_order() -> None:
    """One that answers with the number of examples before: its answers tell where each one stood."""

    @method("Counting", "test")
    def counting() -> Method:
        def view(net: Net, task: object) -> object:
            return lambda x: torch.nn.functional.one_hot(torch.arange(len(x)) % net.classes, net.classes).to(x.dtype)

        return replace(fedavg(), views={"personal": View(view)})  # type: ignore[arg-type]

    try:
        data = with_streams(federate(source(), clients=4, alpha=1), ["switch"])
        said = weft.run("counting", data, **RUN).summary["results"]["personal"]["streams"]["switch"]["accuracy"]
    finally:
        del REGISTRY["counting"]
    rows = [
        data.source.y[own] == np.arange(len(own)) % data.source.classes for own in data.streams["switch"].rows.each()
    ]
    assert abs(said - np.concatenate(rows).mean()) < 1e-9


def test_reports_read_streams(tmp_path: Path) -> None:
    data = with_streams(federate(source(), clients=4), ["switch"])
    weft.run("fedavg", data, **RUN, out=tmp_path / "run")
    run = read_runs([tmp_path / "run"])[0]
    found = run.result("stream switch/others")
    assert found is not None and 0 <= found.test["accuracy"] <= 1


def test_judging_in_parts_is_judging_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a large population some are judged after the others, so that not all that was said is in memory."""
    data, found = with_streams(federate(source(), clients=6, alpha=0.3, new_clients=0.2), ["switch"]), []
    asked: list[int] = []
    monkeypatch.setattr(protocol, "answer", lambda *args, **given: asked.append(len(args[4])) or answer(*args, **given))
    for most in (protocol.ASKED, 7):
        monkeypatch.setattr(protocol, "ASKED", most)
        run = weft.run("ditto", data, **RUN, cohort=2, precision="fp64", out=tmp_path / str(most))
        rows = run.history.to_pylist()
        found.append({tuple(r.values())[:-1]: r["value"] for r in rows if "seconds" not in r["metric"]})
    whole, parts = found
    assert list(whole) == list(parts) and max(asked) == 6 and min(asked) < 3
    assert {k: v for k, v in whole.items() if not np.isclose(v, parts[k], rtol=0, atol=1e-9, equal_nan=True)} == {}


def test_judging_in_parts_copies_no_states(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clients whose states lie side by side are in the same part."""
    data = federate(source(), clients=12, alpha=0.3)
    end = weft.run("ditto", data, **RUN)
    sizes = data.test.counts
    assert sorted(sizes) != list(sizes) != sorted(sizes, reverse=True), "or their states lie in the order of ids"
    monkeypatch.setattr(protocol, "ASKED", 7)
    monkeypatch.setattr(Kept, "gather", None)
    assert list(protocol.judge(end.federation, data, np.arange(12), 9, full=False))
