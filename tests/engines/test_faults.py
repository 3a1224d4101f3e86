"""What goes wrong in a real network: each fault has one clear line in the log, the round ends by its deadline, and the
others' numbers are those of a run in which the faulty client was not in that round."""

from __future__ import annotations

import http.server
import logging
import re
import ssl
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor
from torch.utils._pytree import tree_leaves

from tests.engines.setting import data_settings, run_settings, write_examples
from weft.core.clients import Message, Part
from weft.core.here import Here
from weft.experiment.plugins import load_methods
from weft.experiment.run import Run
from weft.experiment.settings import make
from weft.experiment.sources import federated
from weft.report.live import read

pytest.importorskip("flwr", reason="weft[flower] is not installed")
load_methods()

CLIENTS, ROUNDS = 5, 5
DEADLINE, PATIENT = 12.0, 30.0
"""Seconds that the round of those that are late waits, and that the others may take on a machine that is busy."""
LATE = 4
FAULTS = {  # node -> round -> what goes wrong
    "node-2": {2: "corrupt", LATE: "die"},
    "node-3": {2: "oversized", LATE: "cut"},
    "node-4": {2: "nan", LATE: f"slow:{1.5 * DEADLINE}"},
}
MISSED = {1: {2}, 2: {2, 3, 4}, LATE: {2, 3, 4}}
"""Round -> clients that are not in it; node-2 is new in round 2."""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("faults")
    write_examples(folder)
    return folder


def settings(place: Path, **changed: Any) -> tuple[Any, Any, Any]:
    """(method, settings of the clients' data, of the run); SCAFFOLD, whose clients keep something."""
    how = {"cohort": 1.0, "rounds": ROUNDS, "evaluate_every": 100, "on_nan": "skip", "epochs": 1, "executor": "flower"}
    return (
        make("scaffold", {"lr": 0.1}),
        replace(data_settings(place / "points.npz"), clients=CLIENTS),
        run_settings(**how | changed),
    )


@pytest.fixture(scope="module")
def network(place: Path) -> Iterator[Any]:
    from tests.engines.warm import WarmNetwork
    from weft.deploy.app import init
    from weft.deploy.superlink import free_port

    port = free_port()
    method, data, run = settings(place)
    init(place / "app", method, data, run, nodes=CLIENTS, port=port)
    with WarmNetwork(place / "app", port) as made:
        made.join("node-0", "node-1")
        yield made


def start_faulty(network: Any, name: str, after: int) -> None:
    """Start a node with the faults that it has after a round, unless it runs."""
    from tests.engines import faulty

    if name not in network.nodes or network.nodes[name].poll() is not None:
        left = {str(number): fault for number, fault in FAULTS[name].items() if number > after}
        network.begin(name, faulty.run, left)


class Absent(Here):
    """Clients here, of whom some are not in some rounds."""

    def hear(self, message: Message, *given: Any) -> Iterator[Part]:
        there = torch.tensor([k not in MISSED.get(message.number, ()) for k in message.ids.tolist()])
        yield from super().hear(message._replace(ids=message.ids[there], past=message.past[there]), *given)


def reference(place: Path) -> tuple[Run, Here]:
    """A run in this process, in which the same clients are not in the same rounds."""
    method, data, run = settings(place, executor="batched")
    made = Run.prepare(method, federated(data), run)
    made.here.__class__ = Absent
    made.go()
    return made, made.here


def test_nodes_with_all_their_faults(
    place: Path, network: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Late to come, corrupt, oversized, not finite, slow, killed in mid-training and in mid-upload; back after each.

    `weft status` shows it meanwhile.
    """
    from weft.deploy.clients import Remote
    from weft.deploy.clock import Clock
    from weft.deploy.server import elsewhere
    from weft.deploy.shelf import Shelf
    from weft.deploy.superlink import register

    for name in FAULTS:
        start_faulty(network, name, 0)
    register(network.app, network.address, ["node-3", "node-4"])
    method, data_chosen, run = settings(place)
    data, numbers, seconds, shown = federated(data_chosen), [], [], set()
    with caplog.at_level(logging.INFO, "weft.federation"), network.grid() as grid:
        places = elsewhere(grid, method, data, run, min_clients=2)
        made = Run.prepare(method, data, run, None, tmp_path / "run", elsewhere=places)
        remote = made.federation.clients
        assert isinstance(remote, Remote)
        look, heard = remote.there, remote.hear

        def there(able: Tensor) -> Tensor:  # before a round: wait for the faulty nodes, started again if they died
            number = remote._number + 1
            if number == 2:
                register(network.app, network.address, ["node-2"])
            remote._met, remote.deadline = True, DEADLINE if number == LATE else PATIENT
            clock = Clock()
            while len(found := look(able)) < (CLIENTS if number > 1 else CLIENTS - 1):
                for name in FAULTS:
                    start_faulty(network, name, number - 1)
                shown.update(node[:3] for node in read(str(tmp_path))[0].nodes)
                assert clock.waited() < 90, caplog.text
                time.sleep(0.1)
            return found

        def hear(message: Message, *given: Any) -> list[Part]:
            start = time.monotonic()
            parts = list(heard(message, *given))
            seconds.append(time.monotonic() - start - remote.deadline)
            numbers.append(sorted(int(k) for part in parts for k in part.ids))
            return parts

        remote.there, remote.hear = there, hear  # type: ignore[method-assign]
        made.go()
    lines = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert numbers == [[k for k in range(CLIENTS) if k not in MISSED.get(n, ())] for n in range(1, ROUNDS + 1)], lines
    assert max(seconds) < 10, "a round hangs past its deadline"
    why = {"corrupt": "does not unpack", "oversized": "8,000,000 bytes", "nan": "what is not finite"}
    for name, faults in FAULTS.items():
        for number, fault in faults.items():
            about = [line for line in lines if f"round {number}" in line and name in line]
            assert len(about) == 1 and why.get(fault, "is late: no answer") in about[0], (name, fault, lines)
    assert len(lines) == sum(map(len, FAULTS.values())), lines
    (live,) = read(str(tmp_path))
    assert live.state == "finished" and {node[:2] for node in live.nodes} == {(f"node-{k}", "ready") for k in range(5)}
    assert shown >= {(name, "late", f"{LATE}") for name in FAULTS}, "while they were away"
    failed = {(name, f"{number}") for name, faults in FAULTS.items() for number in faults}
    assert {(f.who, f.round) for f in live.failures} == failed - {("node-4", "2")} | {("client 4", "2")}, live.failures
    assert all(any(f.cause in line for line in lines) for f in live.failures if f.who in FAULTS), live.failures
    same, here = reference(place)
    for x, y in zip(tree_leaves(same.federation.server), tree_leaves(made.federation.server), strict=True):
        torch.testing.assert_close(x, y, rtol=0, atol=1e-9)
    for client in range(CLIENTS):  # what they keep, as it lies on their disks
        home = network.app / "nodes" / f"node-{client}-state" / f"{remote.run:016x}"
        first = here.states(torch.tensor([client]))
        shelf = Shelf(home, lambda client, first=first: first)
        kept = shelf.take(client, int(remote.last[client]))
        for x, y in zip(tree_leaves(first), tree_leaves(kept), strict=True):
            torch.testing.assert_close(x[0], y, rtol=0, atol=1e-9)


REFUSED = {  # fault -> (settings that the node is told, what its clock does, what it says at last)
    "duplicate identity": ({}, "", "or another process uses it"),
    "unknown identity": ({"key": "stranger.key"}, "", "its key is not registered there"),
    "clock ahead": ({}, "ahead", r"clock of this machine is 3\d+ s ahead"),
    "clock behind": ({}, "behind", r"is 3\d+ s behind"),
    "clock that goes wrong": ({"key": "later.key"}, "later", r"is 3\d+ s ahead"),
    "expired certificate": ("expired", "", r"is not to be trusted \(.*expired"),
    "certificate of another host": ("elsewhere", "", r"is not to be trusted \(.*not valid for"),
}


@pytest.fixture(scope="module")
def refusals(network: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, tuple[Any, Path]]]:
    """Nodes that must end by themselves, all at once, since some take their time."""
    from tests.engines import refused
    from tests.engines.warm import Warm
    from weft.deploy.certificates import write_authority, write_node, write_server
    from weft.deploy.superlink import register

    home, folder = network.app / "nodes", tmp_path_factory.mktemp("refused")
    write_node(home, "stranger")
    write_node(home, "later")
    register(network.app, network.address, ["later"])
    until = time.monotonic() + 60
    while "connected to" not in network.log("node-0"):  # else it is the second one that is there first
        assert time.monotonic() < until, network.log("node-0")
        time.sleep(0.1)
    with ExitStack() as stack:
        servers = {}
        for name, hosts, days in (("expired", ["127.0.0.1"], -1), ("elsewhere", ["elsewhere.org"], 9)):
            keys = folder / name
            keys.mkdir()
            write_authority(keys)
            write_server(keys, hosts, days)
            port = stack.enter_context(tls_server(keys))
            servers[name] = {"superlink": f"127.0.0.1:{port}", "certificate": str(keys / "ca.pem")}
        started = {}
        for fault, (told, clock, _) in REFUSED.items():
            path = home / f"{fault.replace(' ', '-')}.yaml"
            told = servers[told] if isinstance(told, str) else told
            chosen = yaml.safe_load((home / "node-0.yaml").read_text()) | {"state": str(folder / fault)} | told
            path.write_text(yaml.safe_dump(chosen))
            process = Warm(refused.run, path, clock, out=path.with_suffix(".log"))
            started[fault] = process, path.with_suffix(".log")
            stack.callback(process.kill)
        yield started


@pytest.mark.parametrize("fault", REFUSED)
def test_a_node_that_is_refused(refusals: Mapping[str, tuple[Any, Path]], fault: str) -> None:
    """It ends by itself, in a bounded time, with one line that says why."""
    from weft.deploy.fleet import HEARTBEAT

    process, log = refusals[fault]
    code, said = process.wait(150), log.read_text()
    lines = [line for line in said.splitlines() if line.startswith("weft: ")]
    assert code != 0 and len(lines) == 1 and "Traceback" not in said, said
    assert re.search(REFUSED[fault][2], lines[0]), lines
    (seconds,) = re.findall(r"^took (\S+)$", said, re.MULTILINE)
    assert float(seconds) < 3 * HEARTBEAT + 10


@contextmanager
def tls_server(keys: Path) -> Iterator[int]:
    """An HTTPS server with the certificate of a folder; its port."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), http.server.SimpleHTTPRequestHandler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(keys / "server.pem", keys / "server.key")
    server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    server.handle_error = lambda *given: None  # type: ignore[method-assign]
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()
