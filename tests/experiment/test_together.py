"""Runs that are one program give what each gives alone, and do not disturb each other."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tests.experiment.small import RUN, archive, figures, source, weft
from torch import Tensor

from weft.core import Method
from weft.core.lift import Number
from weft.core.round import NotFinite
from weft.data.federate import federate
from weft.data.federated import FederatedData
from weft.executors import together as joining
from weft.experiment import run as running
from weft.experiment.compare import compare
from weft.experiment.plugins import load_methods
from weft.experiment.result import load
from weft.experiment.settings import RunSettings, make

load_methods()
DATA = federate(source(240, 120), clients=6, partition="dirichlet", alpha=1.0, validation=0.3)
BASE = RunSettings(rounds=3, cohort=0.5, epochs=1, batch_size=5, model="mlp", precision="fp64", device="cpu")


def grid(name: str, **options: list[Any]) -> dict[str, Method]:
    """A method with the first, second, ... values of all options."""
    rows = [dict(zip(options, row, strict=True)) for row in zip(*options.values(), strict=True)]
    return {f"{name}{i}": make(name, row) for i, row in enumerate(rows)}


def run(methods: Mapping[str, Method], out: Path, how: Any, settings: Any = BASE, data: FederatedData = DATA) -> str:
    """Two seeds of each; the line that says what is run together."""
    said: list[str] = []
    compare(methods, data, settings, out, seeds=2, together=how, say=said.append)
    return said[0]


def tensors(folder: Path) -> dict[str, Tensor]:
    return load_file(sorted((folder / "checkpoint").glob("round-*"))[-1] / "state.safetensors")


def distance(a: Path, b: Path) -> float:
    """Largest difference between two runs, over all metrics and all that server and clients hold."""
    left, right = figures(a), figures(b)
    assert left.keys() == right.keys() and [k for k in left if left[k] == "NaN"] == [
        k for k in right if right[k] == "NaN"
    ]
    gaps = [abs(left[k] - right[k]) for k in left if left[k] != "NaN"]
    mine, other = tensors(a), tensors(b)
    assert mine.keys() == other.keys()
    return max(*gaps, *(float((mine[k].double() - other[k].double()).abs().max()) for k in mine if mine[k].numel()))


def farthest(a: Path, b: Path) -> float:
    folders = sorted(p.name for p in a.iterdir() if p.is_dir())
    assert folders and folders == sorted(p.name for p in b.iterdir() if p.is_dir())
    return max(distance(a / name, b / name) for name in folders)


def private(method: Method) -> Method:
    """The method with a download for each client of its own: the model, and for odd clients half of it."""

    def send(state: Any, r: Any) -> Any:
        share = torch.where(r.ids % 2 == 0, 1.0, 0.5).double()
        return type(state)({k: share.reshape(-1, *[1] * v.ndim) * v for k, v in state.model.items()})

    return replace(method, send=send, private_send=True, views={})


GRIDS = {
    "fedprox": grid("fedprox", lr=[0.05, 0.2, 0.1], mu=[0.01, 0.0, 1.0]),
    "momentum": grid("fedavg", lr=[0.05, 0.1], momentum=[0.0, 0.9], weight_decay=[0.01, 0.0]),
    "adam": {f"adam{lr}": make("fedavg", {"optimizer": "adam", "lr": lr}) for lr in (0.001, 0.01)},
    "scaffold": grid("scaffold", lr=[0.05, 0.1], eta_g=[1.0, 0.5]),
    "ditto": grid("ditto", lr=[0.05, 0.1], lam=[1.0, 0.1], personal_epochs=[1, 2]),
    "fedala": grid("fedala", eta=[1.0, 0.2], share=[0.8, 0.5], lr=[0.05, 0.1]),
    "pfedme": grid("pfedme", lam=[15.0, 5.0], lr_inner=[0.05, 0.02]),
    "private": {k: private(m) for k, m in grid("fedprox", lr=[0.05, 0.1], mu=[0.1, 1.0]).items()},
}


@pytest.mark.parametrize("name", GRIDS)
def test_together_is_apart(name: str, tmp_path: Path) -> None:
    methods, settings = GRIDS[name], replace(BASE, cohort=1.0 if name == "momentum" else 0.5)  # all draw for all
    assert run(methods, tmp_path / "one", "always", settings) == f"{2 * len(methods)} runs as one program"
    assert run(methods, tmp_path / "each", "never", settings).endswith("one after the other (together = never)")
    assert farthest(tmp_path / "one", tmp_path / "each") <= 1e-9


def test_the_runs_differ_so_that_a_mistake_would_show(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With two runs' numbers exchanged the comparison above is far off."""
    whole = joining.numbers

    def exchanged(things: Any) -> list[Number]:
        return [n._replace(values=n.values[::-1]) for n in whole(things)]

    methods = grid("fedprox", lr=[0.05, 0.2], mu=[0.01, 1.0])
    run(methods, tmp_path / "each", "never")
    with monkeypatch.context() as patch:
        patch.setattr(joining, "numbers", exchanged)
        run(methods, tmp_path / "one", "always")
    assert farthest(tmp_path / "one", tmp_path / "each") > 1e-3


def test_other_budgets_and_codecs(tmp_path: Path) -> None:
    methods = grid("fedavg", lr=[0.05, 0.05, 0.1])
    coded = replace(BASE, compress="topk:0.3", lr_schedule="cosine", stragglers=0.5)
    settings = dict(
        zip(methods, [replace(coded, batch_size=3), replace(coded, cohort=5, rounds=3), coded], strict=True)
    )
    assert run(methods, tmp_path / "one", "always", settings) == "6 runs as one program"
    run(methods, tmp_path / "each", "never", settings)
    assert farthest(tmp_path / "one", tmp_path / "each") <= 1e-9


def test_two_turns_and_mixed_architectures(tmp_path: Path) -> None:
    for name, settings in {
        "fedavg": replace(BASE, buffers="recalibrate"),
        "fedproto": replace(BASE, model="mlp,mlp", cohort=1),  # a cohort of one: every round one group is left out
    }.items():
        methods = grid(name, lr=[0.05, 0.1])
        assert run(methods, tmp_path / name / "one", "always", settings) == "4 runs as one program"
        run(methods, tmp_path / name / "each", "never", settings)
        assert farthest(tmp_path / name / "one", tmp_path / name / "each") <= 1e-9


@pytest.mark.parametrize(
    ("methods", "how", "said"),
    [
        (grid("fedavg", lr=[0.1, 0.2]), "auto", "4 runs as one program"),
        (grid("fedavg", clip=[None, 10.0]), "auto", "4 runs as 2 programs"),
        (grid("pfedme", inner_steps=[1, 2]), "auto", "4 runs as 2 programs"),
        (grid("fedavg", lr=[0.1]) | grid("fedavgm", lr=[0.1]), "auto", "4 runs as one program"),
        (grid("fedavg", lr=[0.1]) | grid("fedprox", lr=[0.1]), "always", "4 runs as 2 programs"),
    ],
)
def test_what_is_run_together(methods: dict[str, Method], how: Any, said: str, tmp_path: Path) -> None:
    assert run(methods, tmp_path, how, replace(BASE, rounds=1)) == said


@pytest.mark.parametrize(
    ("methods", "changes", "said"),
    [
        (grid("fedavg", clip=[None, 10.0]), {}, "2 runs one after the other (opt.clip differs)"),
        (grid("pfedme", inner_steps=[1, 2]), {}, "2 runs one after the other (inner_steps decide what is computed)"),
        (grid("fedavg", lr=[0.1, 0.2]), {"executor": "loop"}, "(executor = loop takes one run after the other)"),
        (grid("fedavg", lr=[0.1, 0.2]), {"batch_size": 0, "model": "big"}, "(a step of mlp is work enough)"),
        (grid("fedavg", lr=[0.1]), {}, "1 run"),
    ],
)
def test_why_not(
    methods: dict[str, Method], changes: dict[str, Any], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if changes.get("model") == "big":
        monkeypatch.setattr("weft.experiment.joint.SMALL", 10)
        changes = {**changes, "model": "mlp"}
    lines: list[str] = []
    compare(methods, DATA, replace(BASE, rounds=1, **changes), tmp_path, say=lines.append)
    assert lines[0].endswith(said)


def test_a_run_that_fails_leaves_the_others_alone(tmp_path: Path) -> None:
    methods = grid("fedprox", lr=[0.05, 1e200, 0.1], mu=[0.1, 0.1, 0.1])
    with pytest.raises(ArithmeticError, match=r"fedprox1-seed0: round \d+: .*lower the learning rate") as caught:
        run(methods, tmp_path / "one", "always")
    assert isinstance(caught.value.__cause__, NotFinite)
    sound = {k: methods[k] for k in ("fedprox0", "fedprox2")}
    run(sound, tmp_path / "each", "never")
    for folder in (tmp_path / "each").iterdir():
        assert distance(tmp_path / "one" / folder.name, folder) <= 1e-9


def test_an_error_of_the_program_is_not_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    methods = grid("fedavg", lr=[0.05, 0.1])
    run(methods, tmp_path / "each", "never")
    whole, calls = joining.Together.__call__, []

    def failing(self: Any, requests: Any) -> Any:
        calls.append(requests)
        if len(calls) == 3:  # the first is the trial
            raise RuntimeError("no such operation")
        return whole(self, requests)

    monkeypatch.setattr(joining.Together, "__call__", failing)
    with pytest.warns(UserWarning, match="one after the other, since together: no such operation"):
        run(methods, tmp_path / "one", "always")
    assert len(calls) == 3 and farthest(tmp_path / "one", tmp_path / "each") <= 1e-9


SWEEP = ["sweep", "fedprox", "--grid", "lr=0.05,0.2", "mu=0,1", "--seeds", "2", *RUN, "--precision", "fp64", "--quiet"]


def stopping(monkeypatch: pytest.MonkeyPatch, at: int, stop: Any) -> list[Any]:
    """What is played; the `at`th round is stopped before it begins."""
    played: list[Any] = []
    play = running.play

    def counted(federation: Any, number: int, *rest: Any, **more: Any) -> Any:
        played.append(number)
        if len(played) == at:
            stop()
        return play(federation, number, *rest, **more)

    monkeypatch.setattr(running, "play", counted)
    return played


def interrupt() -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("stop", [interrupt, lambda: os.kill(os.getpid(), signal.SIGINT)], ids=["raised", "signal"])
def test_a_sweep_that_was_stopped_goes_on(
    stop: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell has what it starts in the background ignore it
    data = archive(tmp_path / "data.npz")
    assert weft(*SWEEP, "--data", data, "--out", tmp_path / "whole", "--together", "never") == 0
    with monkeypatch.context() as patch:
        played = stopping(patch, 8 + 3, stop)  # three of eight runs have begun their second round
        assert weft(*SWEEP, "--data", data, "--out", tmp_path / "parts") == 130
        assert len(played) == 8 + 3
    capsys.readouterr()
    with monkeypatch.context() as patch:
        played = stopping(patch, 0, interrupt)
        assert weft(*SWEEP, "--data", data, "--out", tmp_path / "parts") == 0
        assert 8 * 3 <= len(played) <= 8 * 3 + 8  # what was done is not done again
    assert "8 runs as one program" in capsys.readouterr().out
    assert farthest(tmp_path / "parts", tmp_path / "whole") <= 1e-9


def test_a_grid_over_settings_of_the_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["sweep", "fedavg", "--grid", "lr=0.1,0.2", "batch_size=5,0", *RUN, "--rounds", "1", "--quiet"]
    assert weft(*words, "--data", archive(tmp_path / "data.npz"), "--out", tmp_path / "out") == 0
    said = capsys.readouterr().out
    assert "4 runs as one program" in said and "chosen on validation: fedavg_lr0." in said
    assert (tmp_path / "out" / "fedavg_lr0.2_batch_size0").is_dir()
    assert "batch_size: 0" in (tmp_path / "out" / "fedavg_lr0.2_batch_size0" / "settings.yaml").read_text()


def test_times_add_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each run counts its share of what is done for all."""
    began = time.perf_counter()
    trials = compare(grid("fedavg", lr=[0.05, 0.1]), DATA, BASE, tmp_path, seeds=2, together="always")
    wall = time.perf_counter() - began
    seconds = [load(t.path)["cost"]["seconds"]["total"] for t in trials]
    assert 0 < sum(seconds) <= wall and max(seconds) < 0.7 * sum(seconds)
    assert np.isfinite(seconds).all()
