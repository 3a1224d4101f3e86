"""What a run or a round leaves behind: counts, since megabytes are for `benchmarks/scale`."""

from __future__ import annotations

import gc
import os
import tempfile
import threading
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.experiment.small import source

import weft as api
from weft.core import here, kept
from weft.data.federated import FederatedData
from weft.local import stack

METHODS = ("fedavg", "scaffold", "ditto", "fedala", "fedproto")


@pytest.fixture
def data() -> FederatedData:
    return api.federate(source(), clients=8, alpha=1.0, validation=0.2)


def tensors(things: list[Any]) -> list[tuple[int, ...]]:
    """Shapes of the tensors among them; `isinstance` would ask some of the other things what they are."""
    return sorted(tuple(x.shape) for x in things if issubclass(type(x), torch.Tensor))


def held(temporary: Path) -> dict[str, Any]:
    """What there is in this process and in its temporary folder."""
    gc.collect()
    links = [Path(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd")]
    return {
        "tensors": tensors(gc.get_objects()),
        "threads": sorted(thread.name for thread in threading.enumerate()),
        "files": sorted(str(link.readlink()) for link in links if link.is_file()),
        "folders": sorted(path.name for path in temporary.glob("weft-*")),
    }


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="open files are counted on Linux only")
@pytest.mark.parametrize("where", ["memory", "paged"])
@pytest.mark.parametrize("name", METHODS)
def test_further_runs_leave_no_more_than_the_first(
    name: str, where: str, data: FederatedData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    temporary, seen, files = tmp_path / "temporary", [], int(where == "paged" and name != "fedavg")
    temporary.mkdir()
    monkeypatch.setattr(stack, "WORTH", float("inf"))  # traced steps are held on purpose
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    if where == "paged":
        monkeypatch.setattr(here, "Kept", partial(kept.Kept, budget=0))

    def tell(_: Any) -> None:
        seen.append(len(list(temporary.glob("weft-*"))))

    def one(seed: int) -> None:
        out = tmp_path / f"run {seed}"
        api.run(name, data, model="mlp", cohort=4, rounds=2, workers=2, seed=seed, out=out, tell=tell)

    one(0)
    after_one = held(temporary)
    for seed in (1, 2):
        one(seed)
    assert held(temporary) == after_one
    assert not after_one["folders"] and set(seen) == {files}


@pytest.mark.parametrize("name", METHODS)
def test_no_tensor_waits_for_the_collector(
    name: str, data: FederatedData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a round no longer needs goes at once: else memory grows until Python looks for cycles."""
    monkeypatch.setattr(stack, "WORTH", float("inf"))  # tracing leaves cycles, once for each shape
    found: list[Any] = []

    def tell(report: Any) -> None:
        if report.number == 2:
            gc.collect()
            gc.disable()
            gc.set_debug(gc.DEBUG_SAVEALL)
        if report.number == 5:
            gc.collect()
            found.extend(tensors(gc.garbage))

    try:
        api.run(name, data, model="mlp", cohort=4, rounds=6, workers=2, out=tmp_path / "run", tell=tell)
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()
    assert not found


def test_features_are_not_held_after_a_call() -> None:
    net = api.Net.from_module(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 3)))
    tree, before = net.init(0), len(tensors(gc.get_objects()))
    net.apply(tree, torch.zeros(7, 2, 2))
    net.head(tree, torch.zeros(5, 4))
    assert len(tensors(gc.get_objects())) == before
