"""What goes wrong in a real network: each fault has one clear line in the log, the round ends by its deadline, and the
others' numbers are those of a run in which the faulty client was not in that round."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
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

DEADLINE = 12.0
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("faults")
    write_examples(folder)
    return folder


def settings(place: Path, **changed: Any) -> tuple[Any, Any, Any]:
    """(method, settings of three clients' data, of the run); SCAFFOLD, whose clients keep something."""
    how = {"cohort": 1.0, "rounds": 9, "evaluate_every": 100, "on_nan": "skip", "epochs": 1, "executor": "flower"}
    return (
        make("scaffold", {"lr": 0.1}),
        replace(data_settings(place / "points.npz"), clients=3),
        run_settings(**how | changed),
    )


@pytest.fixture(scope="module")
def network(place: Path) -> Iterator[Any]:
    from weft.deploy.app import init
    from weft.deploy.network import Network
    from weft.deploy.superlink import free_port

    port = free_port()
    method, data, run = settings(place)
    init(place / "app", method, data, run, nodes=3, port=port)
    with Network(place / "app", port) as made:
        made.join("node-0", "node-1")
        yield made


def start_faulty(network: Any, faults: Mapping[int, str]) -> subprocess.Popen[bytes]:
    """Start node-2 with these faults."""
    words = [sys.executable, "-m", "tests.engines.faulty", str(network.app / "nodes" / "node-2.yaml")]
    with (network.app / "node-2.log").open("ab") as out:
        made = subprocess.Popen([*words, *(f"{k}={v}" for k, v in faults.items())], cwd=ROOT, stdout=out, stderr=out)
    network.nodes["node-2"] = made
    return made


class Absent(Here):
    """Clients here, of whom one is not in some rounds."""

    missed: Mapping[int, str]

    def hear(self, message: Message, *given: Any) -> Iterator[Part]:
        ids = message.ids[: 2 if message.number in self.missed else 3]
        yield from super().hear(message._replace(ids=ids, past=message.past[: len(ids)]), *given)


def reference(place: Path, missed: Mapping[int, str], **changed: Any) -> tuple[Run, Here]:
    """A run in this process, in which client 2 is not in the rounds `missed`."""
    method, data, run = settings(place, executor="batched", **changed)
    made = Run.prepare(method, federated(data), run)
    made.here.__class__ = Absent
    made.here.missed = missed  # type: ignore[attr-defined]
    made.go()
    return made, made.here


@pytest.mark.skipif(not os.environ.get("WEFT_SLOW"), reason="takes minutes: WEFT_SLOW=1 runs it")
def test_a_node_with_all_its_faults(place: Path, network: Any, caplog: pytest.LogCaptureFixture) -> None:
    """Late to come, corrupt, oversized, not finite, slow, killed in mid-training and in mid-upload; back after each."""
    from weft.deploy.clients import Remote
    from weft.deploy.clock import Clock
    from weft.deploy.server import elsewhere
    from weft.deploy.shelf import Shelf

    faults = {2: "corrupt", 3: "oversized", 4: "nan", 5: f"slow:{1.5 * DEADLINE}", 7: "die", 9: "cut"}
    method, data_chosen, run = settings(place)
    data, numbers, seconds = federated(data_chosen), [], []
    from weft.deploy.superlink import register

    register(network.app, network.address, ["node-2"])
    started: subprocess.Popen[bytes] | None = None
    with caplog.at_level(logging.INFO, "weft.federation"), network.grid() as grid:
        places = elsewhere(grid, method, data, run, deadline=DEADLINE, min_clients=2)
        made = Run.prepare(method, data, run, elsewhere=places)
        remote = made.federation.clients
        assert isinstance(remote, Remote)
        look = remote.there

        def there(able: Tensor) -> Tensor:  # before a round: wait for the faulty node, started again if it died
            nonlocal started
            if not remote._met:
                return look(able)
            if started is None or started.poll() is not None:
                started = start_faulty(network, {k: v for k, v in faults.items() if k > remote._number})
            clock = Clock()
            while len(found := look(able)) < 3 and clock.waited() < 60:
                time.sleep(0.1)
            return found

        remote.there = there  # type: ignore[method-assign]
        heard = remote.hear

        def hear(message: Message, *given: Any) -> list[Part]:
            start = time.monotonic()
            parts = list(heard(message, *given))
            seconds.append(time.monotonic() - start)
            numbers.append(sorted(int(k) for part in parts for k in part.ids))
            return parts

        remote.hear = hear  # type: ignore[method-assign]
        made.go()
    missed = {1: "not started yet", **faults}
    assert numbers == [[0, 1] if number in missed else [0, 1, 2] for number in range(1, 10)], caplog.text
    assert max(seconds) < DEADLINE + 10
    lines = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    for number, words in {
        2: "does not unpack",
        3: "8,000,000 bytes",
        5: "no answer",
        7: "no answer",
        9: "no answer",
    }.items():
        about = [line for line in lines if f"round {number}" in line]
        assert len(about) == 1 and words in about[0] and "node-2 (client 2)" in about[0], (number, lines)
    same, here = reference(place, missed)
    for x, y in zip(tree_leaves(same.federation.server), tree_leaves(made.federation.server), strict=True):
        torch.testing.assert_close(x, y, rtol=0, atol=1e-9)
    for client in range(3):  # what they keep, as it lies on their disks
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
