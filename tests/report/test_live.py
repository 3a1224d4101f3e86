"""`weft status` in a terminal: live runs are told from dead ones, and what cannot be shown is refused in a sentence."""

from __future__ import annotations

import io
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from tests.experiment.small import weft

from weft.core.errors import SettingError
from weft.experiment.folder import RunFolder
from weft.experiment.status import Status
from weft.report.live import FORMAT, Live, is_address, read, shown
from weft.report.watch import picture, watch

ABOUT = {
    "name": "r",
    "method": "fedavg",
    "data": "mnist",
    "model": "",
    "clients": 40,
    "executor": "flower",
    "device": "",
}


def told(**changed: Any) -> dict[str, Any]:
    """What a live run in round 3 of 50 has written just now."""
    status = Status(None, ABOUT, 50, local=False)
    for number in (1, 2):
        status.round(number, range(20))
        status.done(number, {"validation/global/accuracy": 0.8, "test/global/accuracy": 0.75, "run/bytes_up": 2e6})
    status.round(3, range(20))
    status.node("a", "training")
    status.node("b", "lost", "no answer within 60 s")
    return status.told() | changed


def written(folder: Path, said: dict[str, Any]) -> Path:
    folder.mkdir(parents=True)
    (folder / "status.json").write_text(json.dumps(said))
    return folder


def text(*runs: Live, width: int = 140) -> str:
    out = io.StringIO()
    Console(file=out, width=width).print(picture(runs))
    return out.getvalue()


def gone() -> int:
    """The number of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_a_live_run_shows_rounds_clients_figures_nodes_and_failures() -> None:
    said = told()
    run = shown(said | {"seconds_per_round": 2.0, "since": said["since"] - 5}, said["beat"])
    assert (run.state, run.done, run.rounds, run.left) == ("live", 2, 50, "1\u202fmin 36\u202fs")
    assert run.said.startswith("Round 3 of 50: training for 5.0\u202fs, 20 of 40 clients (0, 1, 2, ")
    assert [n.name for n in run.nodes] == ["b", "a"] and run.nodes[0].cause == run.failures[0].cause
    assert run.figures[0] == ("test accuracy, global models", "75.0\u202f%")
    page = text(run)
    for word in (
        "2 of 50 rounds done, 1\u202fmin 36\u202fs left",
        "75.0\u202f%",
        "2\u202fMB",
        "no answer within 60 s",
        "fedavg",
    ):
        assert word in page


@pytest.mark.parametrize(
    ("changed", "later", "state"),
    [
        ({}, 1, "live"),
        ({}, 60, "silent"),
        ({"pid": "gone"}, 1, "dead"),
        ({"pid": "gone", "host": "elsewhere"}, 1, "live"),  # its number says nothing here
        ({"pid": "gone", "host": "elsewhere"}, 60, "silent"),
        ({"pid": "gone", "phase": "finished"}, 9999, "finished"),
        ({"pid": "gone", "phase": "stopped"}, 9999, "stopped"),
        ({"pid": "gone", "phase": "failed", "cause": "round 3: not finite"}, 9999, "failed"),
        ({"pid": 2**70}, 1, "live"),
    ],
)
def test_dead_silent_and_live_runs_are_told_apart(changed: dict[str, Any], later: float, state: str) -> None:
    said = told()
    assert (said["pid"], said["host"]) == (os.getpid(), platform.node())
    if changed.get("pid") == "gone":
        changed = changed | {"pid": gone()}
    run = shown(said | changed, said["beat"] + later)
    assert run.state == state and run.over == (state not in ("live", "silent"))
    assert run.left == "–" or state == "live"
    assert changed.get("cause", "") in run.said and run.said[0].isupper()


def test_several_runs_are_a_table(tmp_path: Path) -> None:
    written(tmp_path / "b", told(phase="failed", cause="the cause"))
    written(tmp_path / "deep" / "a", told())
    written(tmp_path / "c", told(format=FORMAT + 1))
    runs = read(str(tmp_path))
    assert [(r.name, r.state) for r in runs] == [("b", "failed"), ("c", "unreadable"), ("deep/a", "live")]
    page = text(*runs)
    assert "the cause" in page and f"format {FORMAT + 1}" in page and "2/50" in page


def test_what_a_run_names_cannot_command_a_terminal() -> None:
    evil = "\x1b[2J\x1b]0;owned\x07[red]x[/red]\n\u202egnp"
    said = told(name=evil, nodes={evil: {"state": evil, "round": 1, "seen": 0.0, "cause": evil}})
    run = shown(said | {"failures": [{"time": 0.0, "round": 1, "who": evil, "cause": evil}]}, said["beat"])
    for page in (text(run), text(run, run)):
        assert not {"\x1b", "\x07", "\u202e"} & set(page) and "[red]x[/red]" in page


@pytest.mark.parametrize(
    ("content", "word"),
    [("", "can't be read"), ("[]", "can't be read"), ("{", "can't be read"), ('{"format": 1}', "it has no 'phase'"),
     ('{"format": 9}', "format 9"), (json.dumps({**told(), "nodes": 3}), "can't be read")],
)  # fmt: skip
def test_damaged_files_are_refused_in_a_sentence(content: str, word: str, tmp_path: Path) -> None:
    (tmp_path / "status.json").write_text(content)
    with pytest.raises(SettingError, match=word) as caught:
        read(str(tmp_path))
    assert "\n" not in str(caught.value) and str(tmp_path / "status.json") in str(caught.value)


def test_bad_words_are_refused_with_status_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    written(tmp_path / "run", told())
    (tmp_path / "empty").mkdir()
    for words, word in [
        ([tmp_path / "none"], "there is no such folder"),
        ([tmp_path / "empty"], "no run has written status.json"),
        (["http://127.0.0.1:1"], "no answer"),
        (["http://127.0.0.1:x"], "no answer"),
        (["http://["], "no answer"),
        (["http://127.0.0.1:1", "--serve"], "is an address"),
        ([tmp_path / "run", "--serve", "--once"], "exclude each other"),
        ([tmp_path / "run", "--port", "high"], "port"),
        ([tmp_path / "run", "--mu", "1"], "has no option --mu"),
    ]:
        assert weft("status", *words) == 2, words
        said = capsys.readouterr()
        assert not said.out and said.err.count("\n") == 1 and word in said.err, said.err


def test_once_prints_and_ends(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    written(tmp_path / "run", told())
    assert weft("status", tmp_path, "--once") == 0
    first = capsys.readouterr().out
    assert weft("status", tmp_path / "run") == 0  # the same where the output is no terminal
    assert "Round 3 of 50" in capsys.readouterr().out and "2 of 50 rounds done" in first


def test_in_a_terminal_it_goes_on_until_it_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("weft.report.watch.EVERY", 0.01)
    seen = []

    def found() -> list[Live]:
        if len(seen) == 3:
            raise KeyboardInterrupt
        seen.append(1)
        said = told(round=len(seen))
        return [shown(said, said["beat"])]

    out = io.StringIO()
    with pytest.raises(KeyboardInterrupt):
        watch(found, Console(file=out, force_terminal=True, width=100))
    assert all(f"Round {k} of 50" in out.getvalue() for k in (1, 2, 3))


def test_addresses() -> None:
    assert is_address("http://127.0.0.1:8460") and is_address("https://a") and not is_address("runs/http")


def test_a_real_write_is_never_seen_in_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("weft.experiment.status.EVERY", 0.0)
    with Status(RunFolder(tmp_path), ABOUT, 50, local=False) as status:
        for k in range(300):
            status.node(f"node {k}", "training")
        end, count = time.monotonic() + 0.5, 0
        while time.monotonic() < end:
            assert len(read(str(tmp_path))[0].nodes) <= 300
            count += 1
    assert count > 5
