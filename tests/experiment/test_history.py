"""What a run remembers of its rounds is what its folder holds, and takes little."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tests.experiment.small import source

import weft as api
from weft.experiment.folder import Rows, RunFolder
from weft.experiment.history import History


def test_it_is_the_part_of_the_metrics_that_is_over_clients(tmp_path: Path) -> None:
    data = api.federate(source(), clients=4, alpha=1.0, validation=0.3)
    settings = {"model": "logistic", "rounds": 3, "cohort": 2, "evaluate_every": 2}
    written, kept = api.run("ditto", data, out=tmp_path / "run", **settings), api.run("ditto", data, **settings)
    own, whole = kept.history.to_pylist(), written.history.to_pylist()
    assert written.history.schema == kept.history.schema

    def of(rows: list[dict[str, object]]) -> set[tuple[object, ...]]:
        return {tuple(r.values()) for r in rows if r["client"] == -1 and "seconds" not in str(r["metric"])}

    assert of(own) == of(whole) and len(own) < len(whole)
    assert [r["round"] for r in own] == sorted(r["round"] for r in own)
    again = History()
    again.read(RunFolder(tmp_path / "run").metrics(over_clients=True))
    assert of(again.table().to_pylist()) == of(whole)
    assert again.at(2, "test", "personal", "absent") == {
        r["metric"]: r["value"] for r in whole
        if (r["round"], r["split"], r["view"], r["group"], r["client"]) == (2, "test", "personal", "absent", -1)
    }  # fmt: skip
    assert again.at(1, "test", "personal", "absent") == {} == again.at(2, "test", "personal", "nobody")


def test_an_empty_history_is_an_empty_table() -> None:
    assert len(History().table()) == 0


def test_many_clients_are_written_in_several_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("weft.experiment.folder.BLOCK", 5)
    rows = Rows()
    for k in range(4):
        rows.add(1, "test", "global", "all", {f"m{k}": k / 2})
        rows.add(1, "test", "global", "all", {f"m{k}": np.arange(3.0) + k}, clients=np.array([4, 7, 9]))
    assert [len(table) for table in rows.tables()] == [5, 7, 4]
    folder = RunFolder.start(tmp_path / "run", {}, resume=False)
    folder.write_metrics(1, rows.tables())
    found = {(r["client"], r["metric"]): r["value"] for r in folder.metrics().to_pylist()}
    assert found == {
        (who, f"m{k}"): value
        for k in range(4)
        for who, value in ((-1, k / 2), (4, 0.0 + k), (7, 1.0 + k), (9, 2.0 + k))
    }
