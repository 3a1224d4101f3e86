"""One method file, and the same numbers from every engine: loop, batched, Ray and Flower.

Flower means three nodes as processes of their own, which make their data from settings and the method from its name and
arguments, on a SuperLink with TLS and signed requests. It is started once for all methods. It has those that differ in
what nodes do: personal models, architectures of their own, codecs that remember. What its messages carry is the same
without processes, so every method and every combination is tried there.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._pytree import tree_leaves

from tests.engines.setting import (
    ALL,
    BUILT,
    CLIENTS,
    EVERY,
    METHODS,
    data_settings,
    method,
    run_settings,
    write_examples,
)
from tests.local.test_plugins import COMPOSED
from weft.experiment.plugins import load_methods
from weft.experiment.result import Result
from weft.experiment.run import Run
from weft.experiment.sources import federated

load_methods()
TRIED = [*METHODS, *(f"scaffold with {what}" for what in COMPOSED)]
"""Other methods are tried by the laws, each with one process and with actors, and with parts in tests/local."""
TRAVELLED = ["ditto", "fedproto, two architectures", "fedadam with top-k"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("engines")
    write_examples(folder)
    return folder


@functools.cache
def local(place: Path, label: str, executor: str, **changed: Any) -> Result:
    settings = run_settings(executor=executor, **ALL[label][2] | changed)
    return Run.prepare(method(label), federated(data_settings(place / "points.npz")), settings).go()


@pytest.fixture(scope="module")
def port(place: Path) -> int:
    """Of a deployment folder, which is written."""
    pytest.importorskip("flwr", reason="weft[flower] is not installed")
    from weft.deploy.app import init
    from weft.deploy.superlink import free_port

    found = free_port()
    init(place / "app", method("fedavg"), data_settings(place / "points.npz"), run_settings(), nodes=3, port=found)
    return found


@pytest.fixture(scope="module")
def network(place: Path, port: int) -> Iterator[Any]:
    from tests.engines.warm import WarmNetwork

    with WarmNetwork(place / "app", port) as made:
        made.join("node-0", "node-1", "node-2")
        yield made


@pytest.mark.parametrize("label", TRIED)
def test_batched_is_loop(place: Path, label: str) -> None:
    assert_same(local(place, label, "loop"), local(place, label, "batched"))


@pytest.mark.parametrize("label", TRIED)
def test_ray_is_batched(place: Path, label: str) -> None:
    pytest.importorskip("ray", reason="weft[ray] is not installed")
    settings = run_settings(executor="ray", actors=2, actor_cpus=0.5, **ALL[label][2])
    result = Run.prepare(method(label), federated(data_settings(place / "points.npz")), settings).go()
    assert_same(local(place, label, "batched"), result)


@pytest.mark.parametrize("label", BUILT | EVERY)
def test_messages_in_this_process_are_batched(place: Path, label: str, port: int, tmp_path: Path) -> None:
    """What nodes do with Flower's messages and their bytes, without processes to carry them."""
    from tests.engines.line import Line, three
    from weft.deploy.server import elsewhere

    short = {"epochs": 1, "evaluate_every": 2}
    settings = run_settings(executor="flower", **ALL[label][2] | short)
    data, chosen = federated(data_settings(place / "points.npz")), method(label)
    places = elsewhere(Line(**three(place, tmp_path)), chosen, data, settings, deadline=60.0, min_clients=CLIENTS)
    assert_same(local(place, label, "batched", **short), Run.prepare(chosen, data, settings, elsewhere=places).go())


@pytest.mark.parametrize("label", TRAVELLED)
def test_flower_is_batched(place: Path, label: str, network: Any, caplog: pytest.LogCaptureFixture) -> None:
    from weft.deploy.server import elsewhere

    short = {"rounds": 2, "evaluate_every": 2}  # every figure is asked for in some twenty requests to each node
    settings = run_settings(executor="flower", **ALL[label][2] | short)
    data, chosen = federated(data_settings(place / "points.npz")), method(label)
    with caplog.at_level(logging.INFO, "weft.federation"), network.grid() as grid:
        places = elsewhere(grid, chosen, data, settings, deadline=60.0, min_clients=CLIENTS)
        result = Run.prepare(chosen, data, settings, elsewhere=places).go()
    assert "node-2" in caplog.text, network.log("node-2")
    assert_same(local(place, label, "batched", **short), result)
    homes = [place / "app" / "nodes" / f"node-{k % 3}-state" for k in range(CLIENTS)]
    run = max(homes[0].iterdir(), key=lambda path: path.stat().st_mtime).name
    kept = [sorted((home / run / f"client-{k}").glob("*.safetensors")) for k, home in enumerate(homes)]
    assert any(kept), "what clients keep is on their nodes' disks"


def assert_same(one: Result, other: Result) -> None:
    """The same clients and bytes, figures of every client, and the same server to 1e-9."""
    tables = [
        sorted(result.history.to_pylist(), key=lambda row: [str(v) for v in list(row.values())[:-1]])
        for result in (one, other)
    ]
    timed = [[row for row in table if not row["metric"].endswith("_seconds")] for table in tables]
    assert [[r[k] for k in list(r)[:-1]] for r in timed[0]] == [[r[k] for k in list(r)[:-1]] for r in timed[1]]
    for a, b in zip(*timed, strict=True):
        assert a["value"] == pytest.approx(b["value"], rel=1e-9, abs=1e-9, nan_ok=True), (a, b)
    assert torch.equal(one.federation.turns, other.federation.turns)
    assert one.federation.turns.sum() == 4 * one.summary["rounds"]
    leaves = [tree_leaves((r.federation.server, dict(r.federation.then))) for r in (one, other)]
    assert leaves[0] or not one.federation.method.up
    for x, y in zip(*leaves, strict=True):
        torch.testing.assert_close(x, y, rtol=0, atol=1e-9)
