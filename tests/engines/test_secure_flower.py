"""Secure aggregation over a real network: the right sum whoever dies, and a server that never holds an upload.

Three nodes are processes of their own on a SuperLink, as in `test_same_numbers`: one with four clients, two with one
each. They are started once; the last test kills two of them.
"""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch import Tensor
from torch.utils._pytree import tree_leaves

from tests.engines.setting import CLIENTS, data_settings, run_settings, write_examples
from tests.privacy.memory import found, regions
from weft.core.clients import Message, Part
from weft.core.here import Here
from weft.experiment.plugins import load_methods
from weft.experiment.result import Result
from weft.experiment.run import Run
from weft.experiment.settings import make
from weft.experiment.sources import federated

pytest.importorskip("flwr", reason="weft[flower] is not installed")
load_methods()

ROOT = Path(__file__).parents[2]
HOMES = {"node-0": [0, 1, 2, 3], "node-1": [4], "node-2": [5]}
CLOSE = 1e-9
"""Numbers of a client are rounded to 2^-54 (docs/privacy.md), and so is its weight as a share of 2^20, which is about
1e-4 in sum: a mean is off by 1e-12, and by a little more where a server optimiser divides by small numbers."""
LONG = 60.0
"""Seconds: a deadline that no living node needs."""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("secure")
    write_examples(folder)
    (folder / "told").mkdir()
    return folder


@pytest.fixture(scope="module")
def network(place: Path) -> Iterator[Any]:
    from tests.engines import telling
    from tests.engines.warm import WarmNetwork
    from weft.deploy.app import init
    from weft.deploy.superlink import free_port, register

    port, data = free_port(), data_settings(place / "points.npz")
    init(place / "app", make("fedavg", {"lr": 0.1}), data, run_settings(), nodes=3, port=port)
    with WarmNetwork(place / "app", port) as made:
        register(made.app, made.address, list(HOMES))
        for name, clients in HOMES.items():
            path = made.app / "nodes" / f"{name}.yaml"
            path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | {"clients": clients, "poll": 0.2}))
            made.begin(name, telling.run, place / "told")
        yield made


def here(place: Path, name: str, **changed: Any) -> Result:
    return Run.prepare(
        make(name, {"lr": 0.1}), federated(data_settings(place / "points.npz")), run_settings(**changed)
    ).go()


def there(place: Path, grid: Any, name: str, how: dict[str, Any], **changed: Any) -> Run:
    """A run over a network, prepared."""
    from weft.deploy.server import elsewhere

    settings = run_settings(executor="flower", secure_aggregation=True, **changed)
    data, method = federated(data_settings(place / "points.npz")), make(name, {"lr": 0.1})
    return Run.prepare(method, data, settings, elsewhere=elsewhere(grid, method, data, settings, **how))


def apart(one: Any, other: Any) -> float:
    """The largest difference between two servers."""
    each = [tree_leaves((x.federation.server, dict(x.federation.then))) for x in (one, other)]
    return max(float((x - y).abs().max()) for x, y in zip(*each, strict=True) if x.numel())


def test_the_numbers_are_those_of_plain_sums(place: Path, network: Any) -> None:
    """Two channels; bytes are those of the simulated protocol. Other methods: `test_secure_nodes`."""
    short: dict[str, Any] = {"rounds": 2, "epochs": 1, "evaluate_every": 100}
    with network.grid() as grid:
        result = there(place, grid, "scaffold", {"min_clients": CLIENTS}, **short).go()
    plain, simulated = here(place, "scaffold", **short), here(place, "scaffold", secure_aggregation=True, **short)
    assert apart(plain, result) <= CLOSE and apart(simulated, result) <= CLOSE
    assert torch.equal(plain.federation.turns, result.federation.turns)
    for kind in ("bytes_up", "bytes_down", "steps"):
        assert result.totals[kind] == simulated.totals[kind], kind


class Told:
    """What the nodes of a run have written down: pieces of their clients' uploads, as they would lie in memory."""

    def __init__(self, folder: Path) -> None:
        files = [np.load(path) for path in sorted(folder.glob("*.npz"))]
        assert len(files) == CLIENTS
        self.single: dict[bytes, int] = {}  # what no server may hold -> whose it is
        for client, one in enumerate(files):
            start, at = int(one["first"]), len(one["plain"]) // 3
            x, share, word = one["plain"][at : at + 8], *(one[k][start + at :][:8] for k in ("values", "words"))
            assert len(set(x.tolist())) == 8
            for needle in (x, x.astype(np.float64), share, word):
                self.single[needle.tobytes()] = client
        assert len(self.single) == 4 * CLIENTS, "no two clients have sent the same"
        total = np.sum([one["words"] for one in files], axis=0, dtype=np.uint64).view(np.int64)
        at = int(files[0]["first"]) + len(files[0]["plain"]) // 3
        self.mean = (total[at : at + 8] / total[0]).astype(np.float32).tobytes()  # the sum of weights comes first


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="reads the memory of a process as Linux shows it")
@pytest.mark.parametrize("secure", ["yes", "no"])
def test_the_server_s_process_never_holds_an_upload(place: Path, network: Any, tmp_path: Path, secure: str) -> None:
    """Its memory and all its objects when turns are answered, when masked values are in and at the end of the round.

    And what has come to it. The server is a process of its own that has no data. Without secure aggregation uploads are
    found in the same way.
    """
    for path in (place / "told").glob("*.npz"):
        path.unlink()
    dump = tmp_path / "objects"
    words = [sys.executable, "-m", "tests.engines.searched", network.app, network.address, dump, secure]
    with (tmp_path / "log").open("wb") as log:
        child = subprocess.Popen(words, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log)
    assert child.stdin and child.stdout
    in_memory, in_objects, pauses, mean = set[bytes](), set[bytes](), 0, b""
    try:
        while child.stdout.readline():
            pauses += 1
            told = Told(place / "told")
            mean = told.mean
            try:
                in_memory |= found({*told.single, mean} - in_memory, regions(child.pid))
            except PermissionError:
                pytest.skip("this machine does not let a process read its child's memory")
            in_objects |= found([*told.single, mean], [dump.read_bytes()])
            child.stdin.write(b"\n")
            child.stdin.flush()
        assert child.wait(60) == 0 and pauses == (3 if secure == "yes" else 2), (tmp_path / "log").read_text()
    finally:
        child.kill()
        child.wait()
        child.stdin.close()
        child.stdout.close()
    sent = found(told.single, [dump.with_name("came").read_bytes()])
    if secure == "yes":
        assert in_memory == in_objects == {mean} and not sent
    else:
        single = set(told.single)
        assert in_memory & single and in_objects & single and {told.single[n] for n in sent} == set(range(CLIENTS))


class Absent(Here):
    """Clients here, of whom client 5 is in the first round only, and client 4 in the first two."""

    def there(self, able: Tensor) -> Tensor:
        self.rounds = getattr(self, "rounds", 0) + 1
        return able if self.rounds <= 2 else able[able < 4]

    def hear(self, message: Message, *given: Any) -> Iterator[Part]:
        last = 5 if message.number == 1 else 4 if message.number == 2 else 3
        ids = message.ids[message.ids <= last]
        yield from super().hear(message._replace(ids=ids, past=message.past[: len(ids)]), *given)


def test_nodes_that_die_between_the_steps(
    place: Path, network: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In round 2 node-2 dies before its masked values, so it is not in the sum; node-1 after them, so it is."""
    from weft.deploy.shelf import Shelf

    (place / "told" / "node-2-dies").write_text("round 2 masked")
    (place / "told" / "node-1-dies").write_text("round 2 reveal")
    changed = {"cohort": 1.0, "rounds": 3, "epochs": 1, "evaluate_every": 100}
    with caplog.at_level(logging.INFO, "weft.federation"), network.grid() as grid:
        run = there(place, grid, "scaffold", {"min_clients": CLIENTS}, secure_threshold=4, **changed)
        remote: Any = run.federation.clients
        keep, ask, pulled, buried = remote.keep, remote.ask, grid.pull_messages, set[str]()

        def kept(ids: Tensor) -> None:
            keep(ids)
            remote.least = CLIENTS if remote._number < 2 else 4

        def asked(*given: Any) -> Iterator[Any]:
            remote.deadline = LONG
            yield from ask(*given)

        def pull(names: Any) -> Iterator[Any]:  # the deadline is over when the one that is waited for has died
            names = list(names)
            yield from pulled(names)
            dead = {name for name, process in network.nodes.items() if process.poll() is not None} - buried
            if dead and len(names) == 1:
                buried.update(dead)
                remote.deadline = 0.0

        remote.keep, remote.ask = kept, asked
        monkeypatch.setattr(grid, "pull_messages", pull)
        run.go()
    for name in ("node-1", "node-2"):
        assert network.nodes[name].poll() == 9, network.log(name)
    assert run.federation.turns.tolist() == [3, 3, 3, 3, 2, 1], caplog.text
    lines = [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]
    assert len(lines) == 2 and all("is late: no answer in round 2" in line for line in lines), lines
    same = Run.prepare(
        make("scaffold", {"lr": 0.1}), federated(data_settings(place / "points.npz")), run_settings(**changed)
    )
    same.here.__class__ = Absent
    same.go()
    assert apart(same, run) <= CLOSE
    homes = {k: network.app / "nodes" / f"{name}-state" for name, own in HOMES.items() for k in own}
    for (
        client,
        home,
    ) in homes.items():  # what they keep, as it lies on their disks, is that of the last round they were in
        first = same.here.states(torch.tensor([client]))
        shelf = Shelf(home / f"{remote.run:016x}", lambda client, first=first: first)
        mine = shelf.take(client, int(remote.last[client]))
        for x, y in zip(tree_leaves(first), tree_leaves(mine), strict=True):
            torch.testing.assert_close(x[0], y, rtol=0, atol=CLOSE)
