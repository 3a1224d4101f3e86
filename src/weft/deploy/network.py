"""A whole federation on this machine, for testing: a SuperLink and nodes as processes of their own over loopback."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from types import TracebackType

import yaml
from flwr.superlink.grid import HttpGrid

from weft.core.errors import SettingError
from weft.core.method import Method
from weft.data.federated import FederatedData
from weft.deploy.app import init
from weft.deploy.server import elsewhere
from weft.deploy.superlink import free_port, grid, register, start_superlink
from weft.experiment.run import Elsewhere
from weft.experiment.settings import DataSettings, RunSettings

GRACE = 10.0
"""Seconds that a process gets to end before it is killed."""


class Network:
    """The processes of a deployment folder; ends them when it is left."""

    def __init__(self, app: Path, port: int | None = None, *, own_server: bool = False, database: bool = False) -> None:
        """`app`: what `weft.deploy.app.init` wrote, for `port` of this machine; see `start_superlink` for the rest."""
        self.app, self.port = app.resolve(), port or free_port()  # the SuperLink runs there
        self.address = f"127.0.0.1:{self.port}"
        self.own_server, self.database = own_server, database
        self.superlink: subprocess.Popen[bytes] | None = None
        self.nodes: dict[str, subprocess.Popen[bytes]] = {}

    def start(self) -> None:
        """Start the SuperLink."""
        self.superlink = start_superlink(
            self.app, self.port, own_server=self.own_server, log=self.app / "superlink.log", database=self.database
        )

    def join(self, *names: str, registered: bool = True) -> None:
        """Start nodes by the names of their settings files."""
        if registered:
            register(self.app, self.address, names)
        for name in names:
            with (self.app / f"{name}.log").open("ab") as out:
                words = [sys.executable, "-m", "weft.cli", "deploy", "node", str(self.app / "nodes" / f"{name}.yaml")]
                self.nodes[name] = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=out, stderr=out)

    def log(self, name: str) -> str:
        """What a node, or the "superlink", has said."""
        path = self.app / f"{name}.log"
        return path.read_text(errors="replace") if path.exists() else ""

    @contextmanager
    def grid(self) -> Iterator[HttpGrid]:
        """The server's end, in this process, for one run."""
        for name, process in self.nodes.items():
            if process.poll() is not None:
                last = (self.log(name).strip().splitlines() or ["it said nothing"])[-1]
                raise SettingError(f"node {name} has ended: {last}")
        with grid(self.app, self.address) as made:
            yield made

    def __enter__(self) -> Network:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        with ExitStack() as stack:
            for process in (*self.nodes.values(), self.superlink):
                if process is not None:
                    process.terminate()
                    stack.callback(_ended, process)


@contextmanager
def on_this_machine(
    folder: Path,
    method: Method,
    settings: DataSettings,
    data: FederatedData,
    run: RunSettings,
    *,
    nodes: int = 3,
    deadline: float = 60.0,
    min_clients: int = 0,
    plugins: Sequence[str] = (),
) -> Iterator[Elsewhere]:
    """Nodes on this machine, for ``weft run --executor flower``: what gives a run its clients there.

    Args:
        folder: for keys, settings, logs and what clients keep; one that is there already is used again.
        method: what is run, as all that follows.
        settings: of the data; the nodes make `data` from them by themselves.
        data: who has which examples.
        run: settings of the run.
        nodes: processes, among which the clients are divided.
        deadline: seconds that a round waits for answers.
        min_clients: fewest clients of a round; 0: half of all.
        plugins: files that register methods.
    """
    port, names = free_port(), [f"node-{i}" for i in range(nodes)]
    if not (folder / "nodes").is_dir():
        settings = replace(settings, clients=data.clients())
        own = [str(Path(p).resolve()) for p in plugins]
        init(folder, method, settings, run, nodes=nodes, plugins=own, known=data)
    for name in names:
        path = folder / "nodes" / f"{name}.yaml"
        if not path.is_file():
            raise SettingError(f"nodes = {nodes}: {folder} was written for fewer; give the same number to go on")
        told = yaml.safe_load(path.read_text()) | {"superlink": f"127.0.0.1:{port}"}
        path.write_text(yaml.safe_dump(told, sort_keys=False))
    with Network(folder, port) as network:
        network.join(*names)
        with network.grid() as grid:
            yield elsewhere(grid, method, data, run, deadline=deadline, min_clients=min_clients)


def _ended(process: subprocess.Popen[bytes]) -> None:
    try:
        process.wait(GRACE)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
