"""Memory and time of a server with many nodes: ``python -m benchmarks.nodes [NODES [ROUNDS]]``.

The nodes are threads of one process, each with its own connection, key, data and folder, on a real SuperLink over
loopback. Prints the resident memory of the server and the seconds after every round. Nodes ask for messages
and give signs of life more seldom than a few nodes would: a SuperLink answers some hundreds of requests in a second.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import torch

from weft.deploy import fleet
from weft.deploy.app import init
from weft.deploy.network import Network
from weft.deploy.node import Node
from weft.deploy.server import elsewhere
from weft.deploy.settings import NodeSettings
from weft.deploy.superlink import free_port, register
from weft.deploy.supernode import answered
from weft.experiment.plugins import load_methods
from weft.experiment.run import RoundReport, Run
from weft.experiment.settings import DataSettings, RunSettings, make
from weft.experiment.sources import federated

QUESTIONS = 20.0
"""How often in a second all nodes together ask for messages."""
SIGNS = 3.3
"""And give signs of life."""


def serve(app: Path, count: int) -> None:
    """All nodes, in this process, until it is ended."""
    torch.set_num_threads(1)
    poll, fleet.HEARTBEAT = max(0.3, count / QUESTIONS), max(10.0, count / SIGNS)
    turn = threading.Semaphore(2)

    def one(i: int) -> None:
        settings = NodeSettings.read(app / "nodes" / f"node-{i}.yaml")
        node = Node(settings)

        def answer(message: object) -> object:
            with turn:
                return node.answer(message)  # type: ignore[arg-type]

        with fleet.connected(settings.superlink, settings.certificate, settings.key) as connection:
            while True:
                if not answered(connection, answer):  # type: ignore[arg-type]
                    time.sleep(poll)

    for i in range(count):
        threading.Thread(target=one, args=(i,), daemon=True).start()
    threading.Event().wait()


def resident(process: int) -> float:
    """MiB of a process."""
    for line in Path(f"/proc/{process}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    raise ProcessLookupError(process)


def measure(count: int, rounds: int, folder: Path) -> list[tuple[float, float, float]]:
    """(MiB of the SuperLink, MiB of the run, seconds) after every round."""
    rng = np.random.default_rng(0)
    np.savez(
        folder / "points.npz", x=rng.normal(size=(20 * count, 64)).astype(np.float32), y=rng.integers(0, 4, 20 * count)
    )
    data = DataSettings(data=str(folder / "points.npz"), clients=count, partition="iid")
    run = RunSettings(rounds=rounds, model="mlp", device="cpu", executor="flower", evaluate_every=rounds + 1)
    port, method, found = free_port(), make("fedavg", {"lr": 0.1}), []
    init(folder / "app", method, data, run, nodes=count, port=port)
    divided = federated(data)
    with Network(folder / "app", port) as network:
        assert network.superlink
        link = network.superlink.pid
        register(network.app, network.address, [f"node-{i}" for i in range(count)])
        words = [sys.executable, "-m", "benchmarks.nodes", "serve", str(folder / "app"), str(count)]
        with (folder / "nodes.log").open("wb") as log:
            network.nodes["all"] = subprocess.Popen(words, stdout=log, stderr=log)

        def tell(report: RoundReport) -> None:
            found.append((resident(link), resident(os.getpid()), report.seconds))
            print(
                f"round {report.number}: {report.clients} clients, SuperLink {found[-1][0]:.0f} MiB, "
                f"server {found[-1][1]:.0f} MiB, {report.seconds:.1f} s",
                flush=True,
            )

        with network.grid() as grid:
            places = elsewhere(grid, method, divided, run, deadline=600.0, min_clients=count)
            Run.prepare(method, divided, run, elsewhere=places).go(tell)
    return found


if __name__ == "__main__":
    load_methods()
    if sys.argv[1:2] == ["serve"]:
        serve(Path(sys.argv[2]), int(sys.argv[3]))
    else:
        with tempfile.TemporaryDirectory() as place:
            nodes, rounds = (int(word) for word in [*sys.argv[1:], *["200", "5"][len(sys.argv) - 1 :]])
            links = measure(nodes, rounds, Path(place))
        first, last = sum(links[0][:2]), sum(links[-1][:2])
        print(f"growth after the first round: {100 * (last / first - 1):.1f} %")
