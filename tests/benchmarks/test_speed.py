"""The speed benchmark on a toy: its peers compute the same, and its table says what was measured. Nothing is timed."""

from __future__ import annotations

import importlib
import json
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

HERE = Path(__file__).parents[2] / "benchmarks" / "speed"


@pytest.fixture(autouse=True)
def path(monkeypatch: pytest.MonkeyPatch) -> None:
    """The benchmark's folder comes first, as for its scripts; the first place of the path is theirs to change."""
    monkeypatch.setattr(sys, "path", [str(HERE), *sys.path])


def module(name: str) -> ModuleType:
    return importlib.import_module(name)


def toy(**changes: Any) -> Any:
    """A workload of four clients."""
    w = module("workloads")
    fields = {
        "name": "toy", "about": "a toy", "data": "none", "model": "mlp", "clients": 4, "sizes": 6, "cohort": 2,
        "batch_size": 3, "epochs": 1, "lr": 0.1, "test": 20, "rounds": 2, "warmup": 1,
    }  # fmt: skip
    return w.Workload(**{**fields, **changes})


def images(n: int = 44, tests: int = 20, size: int = 4) -> Any:
    """Grey images of three labels, the label written into the brightness of a corner."""
    rng = np.random.default_rng(0)
    y = np.arange(n) % 3
    x = rng.integers(0, 200, (n, 1, size, size)).astype(np.uint8)
    x[:, 0, 0, 0] = 100 * y
    scaling = np.full((1, 1, 1), 100, np.float32), np.full((1, 1, 1), 0.01, np.float32)
    return module("workloads").Raw(x, y, tests, *scaling, 3, 0, None, None, "made up")


def ragged(raw: Any) -> Any:
    """The same with natural clients of different sizes."""
    owner = np.array([0] * 3 + [1] * 5 + [2] * 8 + [3] * (len(raw.x) - 16))
    held = np.arange(len(raw.x)) % 2 == 1
    return raw._replace(owner=owner, held=held, tests=0)


def characters() -> Any:
    """Windows of tokens; some positions of some windows are not judged."""
    rng = np.random.default_rng(0)
    x, y = rng.integers(1, 7, (44, 5)), rng.integers(1, 7, (44, 5))
    y[::4, 3:] = -1
    none, one = np.zeros(1, np.float32), np.ones(1, np.float32)
    return ragged(module("workloads").Raw(x, y, 0, none, one, 7, 7, None, None, "made up"))


WHOLE = {"batch_size": 100, "epochs": 3, "sizes": 0}
"""With all examples in one batch the order of the examples does not matter, so that peers must agree to rounding."""


@pytest.mark.parametrize(
    ("changes", "raw"),
    [
        ({"method": "fedavg"}, images),
        ({"method": "fedavg", "model": "logistic"}, images),
        ({"method": "fedavg", "model": "cnn"}, lambda: images(size=16)),
        ({"method": "fedavg", "model": "lstm"}, characters),
        ({"method": "fedprox", "options": {"mu": 0.5}}, images),
        ({"method": "scaffold"}, images),
        ({"method": "ditto", "options": {"lam": 0.5}}, images),
    ],
    ids=["fedavg", "logistic", "cnn", "lstm", "fedprox", "scaffold", "ditto"],
)
def test_the_sequential_loop_and_weft_compute_the_same(changes: dict[str, Any], raw: Any, tmp_path: Path) -> None:
    w, ours, theirs = module("workloads"), module("peers.weft"), module("peers.sequential")
    examples = raw()
    p = w.load(
        "toy", w.prepare(toy(**{**WHOLE, **changes}), tmp_path, examples if examples.vocabulary else ragged(examples))
    )
    made = ours.run(p, ours.federated(p), "fp32", p.workload.lr, p.first)
    told = ours.rounds(made, p.cohorts[:4], 0, 0)
    trainer = theirs.Trainer(p)
    none = [torch.zeros_like(v) for v in trainer.first]
    state = theirs.State(trainer.first, {}, none)
    for number, ids in enumerate(p.cohorts[:4]):
        trainer.examples = trainer.steps = 0
        state = theirs.METHODS[p.workload.method](trainer, state, ids.tolist())
        assert told[number][1:] == (trainer.examples, trainer.steps) == p.work(ids)
    server = made.federation.server
    close(server.model, state.shared)
    assert not all(torch.equal(a, b) for a, b in zip(state.shared, trainer.first, strict=True))
    mine = made.here.states(torch.arange(4)).method
    if p.workload.method == "scaffold":
        close(server.control, state.control)
    for k, own in state.own.items():
        close({name: v[k] for name, v in mine.items()}, own)
    assert bool(state.own) == (p.workload.method in ("scaffold", "ditto"))
    assert ours.accuracy(made) == pytest.approx(theirs.accuracy(trainer, state), abs=1e-6)


def close(tree: dict[str, torch.Tensor], weights: list[torch.Tensor]) -> None:
    for (name, a), b in zip(tree.items(), weights, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5, msg=lambda told, name=name: f"{name}: {told}")


def test_personal_models_are_judged_alike(tmp_path: Path) -> None:
    w, ours, theirs = module("workloads"), module("peers.weft"), module("peers.sequential")
    raw = images(n=300, size=28)
    workload = toy(kind="personal", method="ditto", options={"lam": 1.0}, cohort=4)
    p = w.load("toy", w.prepare(workload, tmp_path, raw))
    a, right, _ = ours.evaluation(p, 1, 0, "fp32")
    b, also, _ = theirs.judged(theirs.Trainer(p), 1, 0)
    assert a[0][1:] == b[0][1:] == p.work(p.cohorts[0]) == (len(p.test), 4)
    assert right == pytest.approx(also, abs=1e-6)
    assert 10 <= np.diff(p.test_offset).min() <= np.diff(p.test_offset).max() <= 60


def test_on_a_device_both_executors_are_measured(tmp_path: Path) -> None:
    """On the CPU here; a GPU's share of busy time can't be had on it."""
    w, gpu = module("workloads"), module("gpu")
    w.prepare(toy(name="toy-100", cohort=4), tmp_path / "data" / "toy-100", images())
    row = gpu.measured(toy(), tmp_path, "cpu", "fp32", 1, 2)
    assert row["ratio"] == row["loop"] / row["batched"] > 0 and row["cohort"] == 4 and np.isnan(row["busy"])


def test_a_prepared_folder_divides_examples_once_and_is_kept(tmp_path: Path) -> None:
    w = module("workloads")
    folder = w.prepare(toy(), tmp_path, images())
    p = w.load("toy", folder)
    assert len(set(p.rows.tolist())) == 24 == len(p.rows)
    assert not set(p.rows.tolist()) & set(p.test.tolist())
    assert np.array_equal(np.sort(p.cohorts, 1), p.cohorts)
    assert all(len(set(ids)) == 2 for ids in p.cohorts.tolist())
    before = {f: f.stat().st_mtime_ns for f in folder.glob("*.np*")}
    w.prepare(toy(rounds=9), tmp_path)  # without examples it can only be kept
    assert before == {f: f.stat().st_mtime_ns for f in folder.glob("*.np*")}
    assert w.load("toy", folder).workload.rounds == 9
    w.prepare(toy(seed=1), tmp_path, images())
    assert not np.array_equal(w.load("toy", folder).cohorts, p.cohorts)


def test_blocks_are_run_once_and_told_in_the_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    w, run, page = module("workloads"), module("run"), module("page")
    workload = toy()
    w.prepare(workload, tmp_path / "data" / "toy", images())
    names = ("weft", "sequential", "pfllib_style")
    peers = {name: replace(run.PEERS[name], workloads=("toy",)) for name in names}
    results = run.measure([workload], peers, tmp_path, 1, ["fp32", "bf16"])
    assert [r.get("error") for r in results] == [None] * 3
    assert all(r["examples"] == r["expected"]["examples"] == [12, 12] for r in results)
    monkeypatch.setattr(run.subprocess, "Popen", None)  # whatever is started now fails
    assert run.measure([workload], peers, tmp_path, 1, ["fp32"]) == results
    blocks = page.read(tmp_path)
    rows = page.table(blocks, {"toy": workload})
    assert {r["peer"] for r in rows} == set(names)
    assert all(not r["remarks"] or "accuracy" in r["remarks"][0] for r in rows)
    text = page.page(rows, blocks, workloads={"toy": workload})
    assert all(f"| {name} |" in text for name in names)
    with pytest.raises(TypeError):  # other rounds are other blocks
        run.measure([replace(workload, rounds=3)], peers, tmp_path, 1, ["fp32"])


def block(peer: str, seconds: list[float], number: int = 0, **changes: Any) -> dict[str, Any]:
    told = {
        "peer": peer, "workload": "toy", "precision": "fp32", "seconds": seconds, "examples": [12] * len(seconds),
        "steps": [4] * len(seconds), "accuracy": 0.9, "memory_mib": 100.0, "versions": {}, "notes": "", "block": number,
        "expected": {"examples": [12] * len(seconds), "steps": [4] * len(seconds)}, "load_before": 0.1,
        "machine": {"processor": "p", "cores": 2, "instructions": [], "memory_gib": 1, "system": "s"},
        "started": "2026-01-01 00:00", "settings": {"rounds": 2, "warmup": 0, "updates": 2}, "data": "made up",
    }  # fmt: skip
    return {**told, **changes}


def test_the_table_marks_what_is_not_comparable(tmp_path: Path) -> None:
    page = module("page")
    blocks = [
        block("weft", [1.0, 1.0]),
        block("weft", [1.0, 3.0], 1),
        block("sequential", [2.0, 4.0]),
        block("sequential", [6.0, 4.0], 1),
        block("short", [1.0, 1.0], examples=[12, 11]),
        block("wrong", [1.0, 1.0], accuracy=0.8),
        {**block("broken", []), "error": "no such thing"},
    ]
    workload = toy(targets={"sequential": 3})
    rows = {r["peer"]: r for r in page.table(blocks, {"toy": workload})}
    sequential = rows["sequential"]
    assert (sequential["median"], sequential["min"], sequential["max"]) == (4, 2, 6)
    assert (sequential["ratio"], sequential["ratio_min"], sequential["ratio_max"]) == (4, 2.5, 3)
    assert (sequential["updates_per_second"], sequential["target"], sequential["remarks"]) == (0.5, 3, [])
    assert rows["short"]["remarks"] == ["examples differ: 23 for 24"]
    assert rows["wrong"]["remarks"] == ["accuracy is -10.0 points from the sequential loop's"]
    assert rows["broken"]["remarks"] == ["1 of 1 blocks failed: no such thing"]
    page.write_csv(list(rows.values()), tmp_path / "table.csv")
    assert len((tmp_path / "table.csv").read_text().splitlines()) == 6
    text = page.page(list(rows.values()), blocks, workloads={"toy": workload})
    assert "| sequential | 4 | 2 | 6 | 0.5 | 100 | 90.00 % | 4.00 (2.50 to 3.00) | 3 |" in text
    assert "no such thing" in text


def test_what_bounds_a_round_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    w, limits = module("workloads"), module("limits")
    workload = toy(model="logistic")
    monkeypatch.setitem(w.WORKLOADS, "toy", workload)
    monkeypatch.setattr(limits, "measured", lambda device, dtype: module("weft.experiment.account").Ceilings(1.0, 1.0))
    w.prepare(workload, tmp_path / "toy", images())
    told = limits.limits(workload, "fp32", tmp_path / "toy")
    steps, weights = 2 * 2, 16 * 3 + 3  # two clients with two batches of three images of 16 pixels, three labels
    assert told["flops"] == steps * 2 * (2 * 3 * 16 * 3)  # logits, and the gradient of the weights
    assert told["bytes"] == 2 * 2 * 4 * weights + 12 * 16  # of each client in and out, and bytes of colour
    assert sum(seconds for _, seconds, _ in told["operations"]) == pytest.approx(told["operations_seconds"])
    assert told["crowding"] > 0 and told["parts"] and told["operations"][0][1] >= told["operations"][1][1] > 0


@pytest.mark.parametrize(
    ("flops", "alone", "said"),
    [(4.0, 8.0, "The ceilings allow 0.75"), (1.0, 8.0, "it needs other operations"), (1.0, 2.0, "would be 3 times")],
)
def test_the_page_says_why_a_target_is_missed(flops: float, alone: float, said: str) -> None:
    page = module("page")
    workload = toy(targets={"sequential": 3})
    blocks = [block("weft", [3.0, 3.0]), block("sequential", [6.0, 6.0])]
    bound = {
        "workload": "toy", "precision": "fp32", "runs": 1, "seconds": 3.0, "parts": {"local": 2.5}, "flops": flops,
        "bytes": 1.0, "ceilings": {"flops": 1.0, "bytes": 1.0}, "operations_seconds": alone,
        "operations": [["mm", alone, 4]],
    }  # fmt: skip
    rows = page.table(blocks, {"toy": workload})
    text = page.page(rows, blocks, [bound], {"toy": workload})
    assert said in text and "Not reached: 3 times sequential would be 1.5 times as quick" in text
    quick = [block("weft", [1.0, 1.0]), blocks[1]]
    text = page.page(page.table(quick, {"toy": workload}), quick, [bound], {"toy": workload})
    assert "Not reached" not in text and "What bounds it" in text


def test_every_workload_fits_its_data_and_its_peers() -> None:
    w, run = module("workloads"), module("run")
    for peer in run.PEERS.values():
        assert set(peer.workloads) <= set(w.WORKLOADS)
    for name, workload in w.WORKLOADS.items():
        assert any(name in peer.workloads for peer in run.PEERS.values())
        assert workload.warmup + workload.rounds <= w.ROUNDS
        assert json.dumps(vars(workload), default=dict)
