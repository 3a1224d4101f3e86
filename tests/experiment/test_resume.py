"""A run that was stopped, in whatever way, goes on to the bits of the run that never was."""

from __future__ import annotations

import errno
import json
import os
import pathlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest
from tests.experiment.small import RUN, archive, bits, figures, snapshot, weft

from weft.experiment import checkpoint
from weft.experiment import run as running

HARD = ["scaffold", "--option", "I", "--momentum", "0.5", "--compress", "topk:0.3", "--cohort", "0.5"]
HARD += ["--stragglers", "0.5", "--lr-schedule", "cosine"]

KILLED = """
import os, signal, sys
from weft.cli import main
from weft.experiment import checkpoint
whole = checkpoint.write
def write(folder, number, *rest):
    if number == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    whole(folder, number, *rest)
checkpoint.write = write
main(sys.argv[1:])
"""


def words(tmp_path: Path, out: str) -> list[str]:
    data = tmp_path / "data.npz"
    return [
        "run",
        *HARD,
        *RUN,
        "--quiet",
        "--data",
        f"npz:{data}" if data.exists() else archive(data),
        "--out",
        str(tmp_path / out),
    ]


def interrupted(monkeypatch: pytest.MonkeyPatch, at: int) -> None:
    play = running.play

    def stopped(federation: Any, number: int, *rest: Any, **more: Any) -> Any:
        if number == at:
            raise KeyboardInterrupt
        return play(federation, number, *rest, **more)

    monkeypatch.setattr(running, "play", stopped)


def test_killed_in_the_middle_of_a_round_and_resumed_in_a_fresh_process(tmp_path: Path) -> None:
    assert weft(*words(tmp_path, "whole")) == 0
    alone = {**os.environ, "OMP_NUM_THREADS": "1"}
    killed = subprocess.run([sys.executable, "-c", KILLED, *words(tmp_path, "killed")], env=alone, capture_output=True)
    assert killed.returncode == -9
    folder = tmp_path / "killed"
    assert (folder / "metrics.parquet" / "round-000003.parquet").exists() and not (folder / "report.html").exists()
    assert json.loads((folder / "summary.json").read_text())["rounds"] == 2
    assert weft("report", folder) == 0
    fresh = [sys.executable, "-m", "weft.cli", *words(tmp_path, "killed"), "--resume"]
    subprocess.run(fresh, env=alone, check=True, capture_output=True)
    assert bits(folder) == bits(tmp_path / "whole")


def test_ctrl_c_leaves_a_folder_to_go_on_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert weft(*words(tmp_path, "whole")) == 0
    capsys.readouterr()
    with monkeypatch.context() as patch:
        interrupted(patch, 3)
        assert weft(*words(tmp_path, "stopped")) == 130
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "--resume" in said
    assert weft(*words(tmp_path, "stopped"), "--resume") == 0
    assert bits(tmp_path / "stopped") == bits(tmp_path / "whole")


def test_a_finished_run_is_left_as_it_is(tmp_path: Path) -> None:
    assert weft(*words(tmp_path, "whole")) == 0
    before = bits(tmp_path / "whole")
    assert weft(*words(tmp_path, "whole"), "--resume") == 0
    assert bits(tmp_path / "whole") == before


def test_stopped_before_the_first_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert weft(*words(tmp_path, "whole")) == 0
    with monkeypatch.context() as patch:
        interrupted(patch, 1)
        assert weft(*words(tmp_path, "stopped")) == 130
    assert weft(*words(tmp_path, "stopped"), "--resume") == 0
    assert bits(tmp_path / "stopped") == bits(tmp_path / "whole")


def test_rare_checkpoints_cost_rounds_but_no_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rare = ["--checkpoint-every", "3", "--evaluate-every", "2", "--rounds", "6"]
    assert weft(*words(tmp_path, "whole"), *rare) == 0
    with monkeypatch.context() as patch:
        interrupted(patch, 6)
        assert weft(*words(tmp_path, "stopped"), *rare) == 130
    assert weft(*words(tmp_path, "stopped"), *rare, "--resume") == 0
    assert bits(tmp_path / "stopped") == bits(tmp_path / "whole")


def full(monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    """The disk is full from the third time on that `what` is written."""
    seen = []

    def refuse(name: str) -> None:
        if name == what:
            seen.append(name)
            if len(seen) >= 3:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def wrapped(original: Any, of: Any) -> Any:
        def write(*args: Any, **more: Any) -> Any:
            refuse(of(*args))
            return original(*args, **more)

        return write

    monkeypatch.setattr(checkpoint, "stream", wrapped(checkpoint.stream, lambda p, _: p.name))
    monkeypatch.setattr(pathlib.Path, "write_text", wrapped(pathlib.Path.write_text, lambda p, _: p.name))
    monkeypatch.setattr(pyarrow.parquet, "ParquetWriter", wrapped(pyarrow.parquet.ParquetWriter, lambda *_: "metrics"))


@pytest.mark.parametrize("what", ["state.safetensors", "state.json", "metrics", ".summary.json.part"])
def test_a_full_disk_is_one_sentence_and_costs_nothing_saved(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert weft(*words(tmp_path, "whole")) == 0
    capsys.readouterr()
    with monkeypatch.context() as patch:
        full(patch, what)
        assert weft(*words(tmp_path, "full")) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "No space left on device" in said
    newest = checkpoint.latest(tmp_path / "full")
    saved = 3 if "summary" in what else 2
    assert newest is not None and newest.name == f"round-{saved:06d}"
    with monkeypatch.context() as patch:  # what is newer than the checkpoint is forgotten, not counted twice
        interrupted(patch, saved + 1)
        assert weft(*words(tmp_path, "full"), "--resume") == 130
    assert max(k[0] for k in figures(tmp_path / "full")) == saved
    assert weft(*words(tmp_path, "full"), "--resume") == 0
    assert bits(tmp_path / "full") == bits(tmp_path / "whole")


def flipped(place: Path) -> None:
    data = bytearray((place / "state.safetensors").read_bytes())
    data[-1] ^= 1
    (place / "state.safetensors").write_bytes(data)


def swapped(place: Path) -> None:
    """Tensors of another round: sound in themselves, but not those that were written here."""
    other = next(p for p in place.parent.glob("round-*") if p != place)
    (place / "state.safetensors").write_bytes((other / "state.safetensors").read_bytes())


def cut(place: Path) -> None:
    (place / "state.json").write_text((place / "state.json").read_text()[:50])


def gone(place: Path) -> None:
    (place / "state.safetensors").unlink()


def poor(place: Path) -> None:
    note = json.loads((place / "state.json").read_text())
    del note["state"]
    (place / "state.json").write_text(json.dumps(note))


@pytest.mark.parametrize("damage", [flipped, swapped, cut, gone, poor])
def test_a_damaged_checkpoint_is_named_and_the_one_before_serves(
    damage: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert weft(*words(tmp_path, "whole")) == 0
    whole = bits(tmp_path / "whole")
    place = tmp_path / "whole" / "checkpoint" / "round-000004"
    damage(place)
    capsys.readouterr()
    assert weft(*words(tmp_path, "whole"), "--resume") == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and str(place) in said
    for file in place.iterdir():
        file.unlink()
    place.rmdir()
    assert weft(*words(tmp_path, "whole"), "--resume") == 0
    assert bits(tmp_path / "whole") == whole


@pytest.mark.parametrize(
    ("other", "named"),
    [
        (["--lr", "0.2"], "method.opt.lr: 0.05 there, 0.2 now"),
        (["--rounds", "5"], "run.rounds: 4 there, 5 now"),
        (["--alpha", "2"], "data.alpha: 1.0 there, 2.0 now"),
        (["--seed", "1"], "run.seed: 0 there, 1 now"),
    ],
)
def test_changed_settings_are_named(
    other: list[str], named: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert weft(*words(tmp_path, "whole")) == 0
    before = snapshot(tmp_path)
    capsys.readouterr()
    assert weft(*words(tmp_path, "whole"), *other, "--resume") == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and named in said and snapshot(tmp_path) == before


def test_what_cannot_change_the_numbers_may_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        interrupted(patch, 3)
        assert weft(*words(tmp_path, "run")) == 130
    assert weft(*words(tmp_path, "run"), "--chunk", "2", "--checkpoint-every", "2", "--resume") == 0
