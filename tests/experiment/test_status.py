"""A run says what it does in status.json: rarely, whole, and without ever standing in the way of a round."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from tests.experiment.small import RUN, archive, source, weft

import weft as package
from weft.core.method import Method
from weft.core.round import NotFinite
from weft.experiment import status as module
from weft.experiment.folder import RunFolder
from weft.experiment.run import RoundReport
from weft.experiment.status import Status
from weft.report.live import read


def status(folder: Path) -> dict[str, Any]:
    found = json.loads((folder / "status.json").read_text())
    assert isinstance(found, dict)
    return found


def data() -> Any:
    return package.federate(source(), partition="dirichlet", alpha=1.0, clients=4, validation=0.3)


def test_a_run_tells_its_rounds_clients_and_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "EVERY", 0.001)
    seen = []

    def tell(report: RoundReport) -> None:
        end = time.monotonic() + 10
        while status(tmp_path / "run")["done"] < report.number:
            assert time.monotonic() < end
        seen.append(status(tmp_path / "run"))

    result = package.run("fedavg", data(), model="logistic", rounds=3, cohort=2, out=tmp_path / "run", tell=tell)
    assert [(s["round"], s["done"], s["rounds"]) for s in seen] == [(1, 1, 3), (2, 2, 3), (3, 3, 3)]
    assert all(s["cohort"]["size"] == len(s["cohort"]["first"]) == 2 for s in seen)
    assert all(s["nodes"]["this machine"]["state"] == s["phase"] == "checkpoint" for s in seen)
    end = status(tmp_path / "run")
    assert (end["phase"], end["cause"], end["name"], end["method"], end["clients"]) == (
        "finished",
        "",
        "run",
        "fedavg",
        4,
    )
    assert end["figures"]["test/global/accuracy"] == result.accuracy
    assert end["figures"]["run/bytes_up"] == result.summary["cost"]["bytes_up"] / 3
    assert read(str(tmp_path))[0].state == "finished"


def test_a_run_without_a_folder_writes_and_starts_nothing() -> None:
    before = threading.active_count()
    counts = []
    package.run("fedavg", data(), model="logistic", rounds=1, tell=lambda _: counts.append(threading.active_count()))
    assert counts == [before]


def test_how_a_run_ended_is_told(tmp_path: Path) -> None:
    def interrupt(report: RoundReport) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        package.run("fedavg", data(), model="logistic", rounds=3, out=tmp_path / "stopped", tell=interrupt)
    found = status(tmp_path / "stopped")
    assert (found["phase"], found["done"]) == ("stopped", 1)
    package.run("fedavg", data(), model="logistic", rounds=3, out=tmp_path / "stopped", resume=True)
    assert (status(tmp_path / "stopped")["phase"], status(tmp_path / "stopped")["done"]) == ("finished", 3)
    with pytest.raises(NotFinite):
        package.run(package.fedavg(lr=1e38), data(), model="mlp", rounds=3, out=tmp_path / "failed")
    found = status(tmp_path / "failed")
    assert found["phase"] == "failed" and "is not finite" in found["cause"] and "\n" not in found["cause"]


def test_clients_left_out_are_failures(tmp_path: Path) -> None:
    wild: Method = package.fedavg(lr=1e38)
    package.run(wild, data(), model="mlp", rounds=1, on_nan="skip", out=tmp_path / "run")
    told = status(tmp_path / "run")["failures"]
    assert told and all(f["who"].startswith("client ") and f["round"] == 1 and "not finite" in f["cause"] for f in told)


def test_runs_that_go_together_tell_each_their_own(tmp_path: Path) -> None:
    words = ["fedavg", "fedprox:mu=0.1", *RUN, "--seeds", "2", "--together", "always", "--quiet"]
    assert weft("compare", *words, "--data", archive(tmp_path / "data.npz"), "--out", tmp_path / "all") == 0
    runs = read(str(tmp_path / "all"))
    assert len(runs) == 4 and {(r.state, r.done) for r in runs} == {("finished", 4)}


def test_only_the_writer_writes_and_not_more_often_than_it_should(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However short the rounds: the thread of the run waits for the disk at its beginning and at its end only."""
    writers = []
    write = RunFolder.write

    def noted(self: RunFolder, name: str, text: str) -> None:
        if name == "status.json":
            writers.append(threading.current_thread().name)
        write(self, name, text)

    monkeypatch.setattr(RunFolder, "write", noted)
    monkeypatch.setattr(module, "EVERY", 0.1)
    began = time.monotonic()
    with Status(RunFolder(tmp_path), {}, 10**6) as told:
        for number in range(1, 2001):
            told.round(number, range(100))
            told.phase("evaluating")
            told.done(number, {"test/global/accuracy": 0.5})
        time.sleep(0.35)
        lasted = time.monotonic() - began
    main = threading.current_thread().name
    assert writers[0] == writers[-1] == main and set(writers[1:-1]) == {"weft status"}
    assert 2 <= len(writers) - 2 <= lasted / 0.1
    assert status(tmp_path)["done"] == 2000


def test_a_disk_that_refuses_is_warned_about_once_and_the_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: RunFolder, name: str, text: str) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(RunFolder, "write", full)
    with pytest.warns(UserWarning, match="status.json cannot be written") as caught, Status(RunFolder(tmp_path), {}, 1):
        pass
    assert len(caught) == 1


def test_nodes_elsewhere_are_told_from_any_thread(tmp_path: Path) -> None:
    now = 100.0
    with Status(RunFolder(tmp_path), {}, 5, local=False, clock=lambda: now) as told:
        told.round(1, [3, 4])
        told.node("hospital-a", "training")
        asked = threading.Thread(target=told.node, args=("hospital-b", "lost", "no answer within the deadline of 60 s"))
        asked.start()
        asked.join()
        now = 107.0
        told.round(2, [3])
        told.node("hospital-a", "ready")
    found = status(tmp_path)
    assert list(found["nodes"]) == ["hospital-b", "hospital-a"]  # those in trouble first
    assert found["nodes"]["hospital-a"] == {"state": "ready", "round": 2, "seen": 107.0, "cause": ""}
    lost = {"time": 100.0, "round": 1, "who": "hospital-b", "cause": "no answer within the deadline of 60 s"}
    assert found["failures"] == [lost]
    told.node("hospital-b", "training")
    assert told.told()["nodes"]["hospital-b"]["cause"] == "" and told.told()["failures"] == [
        lost
    ]  # back, not forgotten


def test_the_file_stays_small_whatever_the_population(tmp_path: Path) -> None:
    with Status(RunFolder(tmp_path), {"name": "r", "clients": 10**6}, 5, local=False) as told:
        told.round(1, range(100_000))
        for k in range(5000):
            told.node(f"node {k}", "training", "a cause" if k == 4999 else "")
    found = status(tmp_path)
    assert (tmp_path / "status.json").stat().st_size < 100_000
    assert found["cohort"]["size"] == 100_000 and found["nodes_seen"] == 5000 and "node 4999" in found["nodes"]
    assert read(str(tmp_path))[0].unlisted.startswith("4,500 more nodes")
