"""The account of a run's time, and lower precision."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest
import torch
from tests.experiment.small import RUN, archive, source, weft

import weft as api
from weft.experiment.account import PARTS, Account, Ceilings, Work, lines, measured


def test_each_moment_counts_for_the_innermost_part() -> None:
    ticks = itertools.count()
    account = Account(torch.device("cpu"), clock=lambda: float(next(ticks)))  # one second passes between two looks
    with account.of("aggregation"):
        with account.of("data"):
            pass
        with account.of("local"):
            pass
    seconds = account.close()
    assert seconds == {"idle": 2.0, "aggregation": 3.0, "data": 1.0, "local": 1.0, "evaluation": 0.0, "checkpoint": 0.0}
    assert sum(account.close().values()) == 1.0, "a new account begins where the last one was closed"


def test_an_error_closes_its_part() -> None:
    ticks = itertools.count()
    account = Account(torch.device("cpu"), clock=lambda: float(next(ticks)))
    with pytest.raises(ZeroDivisionError), account.of("local"):
        raise ZeroDivisionError
    assert account.close()["idle"] == 2.0


def test_the_account_in_words() -> None:
    seconds = dict.fromkeys(PARTS, 0.0) | {"local": 2.0, "data": 2.0}
    told = lines(seconds, Work(100, 4e9, 2e9, 90, 100), Ceilings(8e9, 4e9), "as told")
    assert told[0] == "plan: as told" and "50.0%" in told[1]
    assert "50 client steps/s, 10.0%" in told[-3]
    assert "2.0 GFLOP/s, 25%" in told[-2] and "1.0 GB/s at the least, 25%" in told[-1]


def test_the_ceilings_are_positive() -> None:
    best = measured(torch.device("cpu"), torch.float32, 0.02)
    assert best.flops > 1e8 and best.bytes > 1e7


def test_a_profiled_run_tells_and_stores_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, out = archive(tmp_path / "data.npz"), tmp_path / "run"
    assert weft("run", "fedavg", *RUN, "--data", data, "--out", out, "--profile", "--quiet") == 0
    said = capsys.readouterr().out
    assert "plan: " in said and "of the computed examples are padding" in said and "GFLOP/s" in said
    stored = json.loads((out / "profile.json").read_text())
    assert set(stored["seconds"]) == set(PARTS) and stored["work"]["rows_run"] >= stored["work"]["rows"] > 0


def test_bf16_keeps_parameters_and_learns_the_same() -> None:
    data = api.federate(source(), clients=4, alpha=1.0)
    settings = {"model": "mlp", "rounds": 8, "device": "cpu"}
    whole, half = (api.run("fedavg", data, precision=p, **settings) for p in ("fp32", "bf16"))
    ours, theirs = half.federation.server.model, whole.federation.server.model
    assert all(x.dtype == torch.float32 for x in ours.values())
    assert any(not torch.equal(ours[k], theirs[k]) for k in ours), "nothing was computed in lower precision"
    assert abs(half.accuracy - whole.accuracy) <= 0.05
