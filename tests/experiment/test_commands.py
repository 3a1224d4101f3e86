"""The other commands: partitions, explanations and comparisons."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.experiment.small import DATA, RUN, archive, bits, figures, weft

from weft.experiment import run as running
from weft.experiment.result import load


def test_partitions_are_made_and_verified(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, out = archive(tmp_path / "data.npz"), tmp_path / "part"
    assert weft("partition", "make", *DATA, "--data", data, "--out", out) == 0
    made = capsys.readouterr().out
    assert weft("partition", "verify", "--data", data, "--out", out) == 0
    seen = capsys.readouterr().out
    digest = json.loads((out / "manifest.json").read_text())["hash"]
    assert digest in made and digest in seen and "4 clients" in made and "whole" in seen
    assert weft("run", "fedavg", *RUN, "--quiet", "--data", data, "--out", tmp_path / "run") == 0
    assert load(tmp_path / "run")["data"]["manifest"] == digest


def test_a_partition_that_was_altered_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, out = archive(tmp_path / "data.npz"), tmp_path / "part"
    assert weft("partition", "make", *DATA, "--data", data, "--out", out) == 0
    other = archive(tmp_path / "other.npz", seed=1)
    capsys.readouterr()
    assert weft("partition", "verify", "--data", other, "--out", out) == 2
    assert "make the partition anew" in capsys.readouterr().err
    with np.load(out / "partition.npz") as held:
        arrays = {k: held[k].copy() for k in held.files}
    arrays["train_rows"][:2] = arrays["train_rows"][1::-1]
    np.savez(out / "partition.npz", **arrays)
    assert weft("partition", "verify", "--data", data, "--out", out) == 2
    said = capsys.readouterr().err
    assert "not those of its manifest" in said and said.count("\n") == 1


WIRE = re.compile(r"^ +(up|down) +(\w+) +(\d+) tensors +([\d,]+) bytes$", re.M)


@pytest.mark.parametrize(
    "words",
    [["scaffold"], ["fedavg"], ["fedavg", "--compress", "quantise:4"], ["fedper"], ["fedproto"], ["local"]],
    ids=" ".join,
)
def test_explained_bytes_are_the_measured_ones(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = archive(tmp_path / "data.npz")
    shared = [*DATA, "--model", "mlp", "--rounds", "1", "--cohort", "3", "--data", data]
    assert weft("explain", *words, *shared) == 0
    page = capsys.readouterr().out
    table = WIRE.findall(page)
    if words == ["scaffold"]:
        assert [(r[0], r[1]) for r in table] == [
            ("down", "model"),
            ("down", "control"),
            ("up", "model"),
            ("up", "control"),
        ]
    assert table or "nothing" in page
    assert weft("run", *words, *shared, "--quiet", "--out", tmp_path / "run") == 0
    found = figures(tmp_path / "run")
    for direction in ("up", "down"):
        said = sum(int(r[3].replace(",", "")) for r in table if r[0] == direction)
        assert 3 * said == found[1, "run", "", "all", -1, f"bytes_{direction}"]
    assert [(r["direction"], r["channel"], r["bytes"]) for r in load(tmp_path / "run")["wire"]] == [
        (r[0], r[1], int(r[3].replace(",", ""))) for r in table
    ]


def test_an_explanation_has_paper_defaults_and_deviations(capsys: pytest.CaptureFixture[str]) -> None:
    assert weft("explain", "fedprox", "--data", "mnist-10k", "--model", "logistic", "--mu", "0.5") == 0
    page = capsys.readouterr().out
    for part in ("Paper", "Algorithm", "Defaults", "Deviations", "mu = 0.5", "With mu=0", "it is fedavg"):
        assert part in page


COMPARE = [
    "compare",
    "fedavg",
    "fedprox:mu=0.1,lr=0.1",
    "fedala",
    "--seeds",
    "2",
    *RUN,
    "--quiet",
    "--together",
    "never",
]


def test_a_comparison_that_was_stopped_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data = archive(tmp_path / "data.npz")
    assert weft(*COMPARE, "--data", data, "--out", tmp_path / "whole") == 0
    names = sorted(p.name for p in (tmp_path / "whole").iterdir() if p.is_dir())
    assert names == sorted(f"{m}-seed{s}" for m in ("fedavg", "fedala", "fedprox_mu0.1_lr0.1") for s in (0, 1))
    played: list[Any] = []
    play = running.play

    def stopped(federation: Any, number: int, *rest: Any, **more: Any) -> Any:
        played.append((federation.method.name, number))
        if len(played) == 11:  # in the third round of the third run
            raise KeyboardInterrupt
        return play(federation, number, *rest, **more)

    with monkeypatch.context() as patch:
        patch.setattr(running, "play", stopped)
        assert weft(*COMPARE, "--data", data, "--out", tmp_path / "parts") == 130
        assert played[-1] == ("fedprox", 3)
        assert weft(*COMPARE, "--data", data, "--out", tmp_path / "parts") == 0
    assert len(played) == 11 + 2 + 3 * 4  # what was done is not done again
    for name in names:
        assert bits(tmp_path / "parts" / name) == bits(tmp_path / "whole" / name)

    def table(out: str) -> list[str]:
        lines = (tmp_path / out / "table.csv").read_text().splitlines()
        return [",".join(line.split(",")[:-1]) for line in lines]  # the last column is seconds

    assert (
        table("parts") == table("whole")
        and len(table("whole")) == 1 + 4
        and table("whole")[0].startswith("method,view")
    )
    capsys.readouterr()
    assert weft(*COMPARE, "--data", data, "--out", tmp_path / "parts", "--lr", "0.2") == 2
    assert "changed settings" in capsys.readouterr().err


def test_every_arm_sees_the_same_data_and_start(tmp_path: Path) -> None:
    data = archive(tmp_path / "data.npz")
    words = ["compare", "fedavg", "fedprox:mu=0", *RUN, "--quiet", "--data", data, "--out", tmp_path / "c"]
    assert weft(*words) == 0
    a, b = tmp_path / "c" / "fedavg", tmp_path / "c" / "fedprox_mu0"
    assert figures(a) == figures(b)


@pytest.mark.parametrize("command", ["methods", "data", "models", "--version", "--help"])
def test_lists(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        status = weft(command)
    except SystemExit as leave:  # argparse leaves after --help
        status = int(leave.code or 0)
    said = capsys.readouterr()
    known = {"methods": "scaffold", "data": "mnist-10k", "models": "cnn-small", "--version": "0.1", "--help": "compare"}
    assert status == 0 and known[command] in said.out and not said.err


def test_runs_get_a_folder_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    data = archive(tmp_path / "data.npz")
    for _ in range(2):
        assert weft("run", "fedavg", *RUN, "--rounds", "1", "--quiet", "--data", data) == 0
    assert sorted(p.name for p in (tmp_path / "runs").iterdir()) == ["fedavg", "fedavg-2"]


def test_a_report_over_runs(tmp_path: Path) -> None:
    data = archive(tmp_path / "data.npz")
    for name in ("fedavg", "local"):
        assert weft("run", name, *RUN, "--quiet", "--data", data, "--out", tmp_path / name) == 0
    assert weft("report", tmp_path / "fedavg", tmp_path / "local", "--out", tmp_path / "both.html") == 0
    page = (tmp_path / "both.html").read_text()
    assert "FedAvg" in page and "Local only" in page


def test_options_after_a_colon(capsys: pytest.CaptureFixture[str]) -> None:
    """They reach a method whose option has the name of a setting."""
    assert weft("explain", "feddyn:alpha=0.5", "--model", "logistic", "--clients", "4", "--alpha", "10") == 0
    assert "alpha = 0.5" in capsys.readouterr().out
    assert weft("explain", "feddyn:alpha", "--model", "logistic") == 2
    assert "without a value" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("fedprox", ["--plug", "dbe:kappa=5"]),
        ("moon", ["--plug", "blend:passes=2,eta=5"]),
        ("ditto", ["--plug", "dbe", "--plug", "blend:passes=2", "--compress", "topk:0.2"]),
    ],
    ids=["dbe", "blend", "all three"],
)
def test_plug_ins_go_with_other_methods_under_both_executors(name: str, words: list[str], tmp_path: Path) -> None:
    """The words of a command; Ray and Flower get the same settings in tests/engines."""
    data = archive(tmp_path / "data.npz")
    run = ["run", name, *DATA, "--model", "mlp", "--rounds", "3", "--precision", "fp64", "--quiet", "--data", data]
    for out, more in (("batched", words), ("loop", [*words, "--executor", "loop"]), ("bare", [])):
        assert weft(*run, *more, "--out", tmp_path / out) == 0
    found = [figures(tmp_path / out) for out in ("batched", "loop", "bare")]
    batched, loop, bare = ({k: float(v) for k, v in f.items()} for f in found)
    assert batched.keys() == loop.keys()
    assert all(batched[k] == pytest.approx(loop[k], rel=1e-9, abs=1e-9, nan_ok=True) for k in batched)
    assert any(batched[k] != pytest.approx(v, abs=1e-6, nan_ok=True) for k, v in bare.items())
