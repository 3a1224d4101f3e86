"""What goes wrong in a real network: each fault has one clear line in the log, the round ends by its deadline, and the
others' numbers are those of a run in which the faulty client was not in that round."""

from __future__ import annotations

import logging
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from tests.engines.setting import data_settings, run_settings, write_examples
from weft.core.clients import Message, Part
from weft.core.here import Here
from weft.experiment.plugins import load_methods
from weft.experiment.run import Run
from weft.experiment.settings import make
from weft.experiment.sources import federated

pytest.importorskip("flwr", reason="weft[flower] is not installed")
load_methods()

CLIENTS, ROUNDS = 5, 5
DEADLINE, PATIENT = 6.0, 30.0
"""Seconds that the round of those that are late waits, and that the others may take on a machine that is busy."""
LATE = 4
FAULTS = {  # node -> round -> what goes wrong
    "node-2": {2: "corrupt", LATE: "die"},
    "node-3": {2: "oversized", LATE: "cut"},
    "node-4": {2: "nan", LATE: f"slow:{1.5 * DEADLINE}"},
}
MISSED = {1: {2}, 2: {2, 3, 4}, LATE: {2, 3, 4}}
"""Round -> clients that are not in it; node-2 is new in round 2."""
ROOT = Path(__file__).parents[2]


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
    from weft.deploy.app import init
    from weft.deploy.network import Network
    from weft.deploy.superlink import free_port

    port = free_port()
    method, data, run = settings(place)
    init(place / "app", method, data, run, nodes=CLIENTS, port=port)
    with Network(place / "app", port) as made:
        made.join("node-0", "node-1")
        yield made


def start_faulty(network: Any, name: str, after: int) -> None:
    """Start a node with the faults that it has after a round, unless it runs."""
    if name in network.nodes and network.nodes[name].poll() is None:
        return
    words = [sys.executable, "-m", "tests.engines.faulty", str(network.app / "nodes" / f"{name}.yaml")]
    words += [f"{number}={fault}" for number, fault in FAULTS[name].items() if number > after]
    with (network.app / f"{name}.log").open("ab") as out:
        network.nodes[name] = subprocess.Popen(words, cwd=ROOT, stdout=out, stderr=out)


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


def test_nodes_with_all_their_faults(place: Path, network: Any, caplog: pytest.LogCaptureFixture) -> None:
    """Late to come, corrupt, oversized, not finite, slow, killed in mid-training and in mid-upload; back after each."""
    from weft.deploy.clients import Remote
    from weft.deploy.clock import Clock
    from weft.deploy.server import elsewhere
    from weft.deploy.shelf import Shelf
    from weft.deploy.superlink import register

    for name in FAULTS:
        start_faulty(network, name, 0)
    register(network.app, network.address, ["node-3", "node-4"])
    method, data_chosen, run = settings(place)
    data, numbers, seconds = federated(data_chosen), [], []
    with caplog.at_level(logging.INFO, "weft.federation"), network.grid() as grid:
        places = elsewhere(grid, method, data, run, min_clients=2)
        made = Run.prepare(method, data, run, elsewhere=places)
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


def refused(network: Any, key: str, *before: str, **told: Any) -> str:
    """The last line of a node that is told other settings, and must end by itself."""
    import yaml

    home = network.app / "nodes"
    chosen = yaml.safe_load((home / "node-0.yaml").read_text()) | {"key": f"{key}.key", "state": "other-state"} | told
    path = home / "other.yaml"
    path.write_text(yaml.safe_dump(chosen))
    words = (
        f"{'; '.join(before)}\nfrom weft.cli import main; import sys; sys.exit(main(['deploy', 'node', {str(path)!r}]))"
    )
    ended = subprocess.run([sys.executable, "-c", words], capture_output=True, text=True, timeout=120)
    assert ended.returncode != 0
    lines = [line for line in ended.stderr.splitlines() if line.startswith("weft: ")]
    assert len(lines) == 1 and "Traceback" not in ended.stderr, ended.stderr
    return lines[0]


def test_a_duplicate_identity(network: Any) -> None:
    until = time.monotonic() + 60
    while "connected to" not in network.log("node-0"):  # else it is the second one that is there first
        assert time.monotonic() < until, network.log("node-0")
        time.sleep(0.1)
    assert "or another process uses it" in refused(network, "node-0")


def test_an_unknown_node(network: Any) -> None:
    from weft.deploy.certificates import write_node

    write_node(network.app / "nodes", "stranger")
    assert "its key is not registered there" in refused(network, "stranger")


def test_a_wrong_clock(network: Any) -> None:
    line = refused(network, "node-0", "import time; now = time.time; time.time = lambda: now() + 3600")
    assert "the clock of this machine is 3" in line and "ahead of" in line


@pytest.mark.parametrize(
    ("hosts", "days", "why"), [(["127.0.0.1"], -1, "expired"), (["elsewhere.org"], 9, "not valid for")]
)
def test_a_certificate_that_is_not_good(network: Any, tmp_path: Path, hosts: list[str], days: float, why: str) -> None:
    """Expired, and of another host."""
    from weft.deploy.certificates import write_authority, write_server

    write_authority(tmp_path)
    write_server(tmp_path, hosts, days)
    with tls_server(tmp_path) as port:
        line = refused(network, "node-0", superlink=f"127.0.0.1:{port}", certificate=str(tmp_path / "ca.pem"))
    assert why in line and "is not to be trusted" in line


def tls_server(keys: Path) -> Any:
    """An HTTPS server with the certificate of a folder."""
    import contextlib
    import http.server
    import ssl
    import threading

    @contextlib.contextmanager
    def served() -> Iterator[int]:
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

    return served()
