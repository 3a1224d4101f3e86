"""A SuperLink on this machine, and the server's end of it in this process.

Flower starts a server app as a process of the SuperLink. On one machine, for testing, the run loop had better be where
the user is: this takes the server app's task from the SuperLink as Flower's own executor does, and gives its `Grid`.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
from cryptography.hazmat.primitives.serialization import load_ssh_public_key
from flwr.cli.build import build_fab_from_disk
from flwr.common.serde import fab_to_proto, run_from_proto
from flwr.proto.control_pb2 import RegisterNodeRequest, StartRunRequest
from flwr.proto.runtime_pb2 import AcquireTaskRequest, PullTaskInputRequest, PushTaskOutputRequest
from flwr.supercore.constant import TaskType
from flwr.supercore.control.control_http_client import ControlHttpClient
from flwr.supercore.fab import Fab
from flwr.supercore.heartbeat import HeartbeatSender, make_task_heartbeat_fn_http
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor
from flwr.supercore.primitives.asymmetric import public_key_to_bytes
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.supercore.task_identity import TaskIdentity
from flwr.superlink.grid import HttpGrid

from weft.core.errors import SettingError
from weft.deploy.clock import Clock
from weft.deploy.prompt import PromptGrid

QUIET = {"FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1", "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.2"}
"""Flower's processes tell nobody about themselves, and look for tasks often."""


PATIENCE = 60.0
"""Seconds that a run on this machine waits for a SuperLink that does not answer."""


def free_port() -> int:
    """A port of the loopback interface that nobody uses now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def start_superlink(
    app: Path, port: int, *, own_server: bool, log: Path, database: bool = False
) -> subprocess.Popen[bytes]:
    """Start a SuperLink with the certificates of a deployment folder.

    Args:
        app: what `weft deploy init` wrote.
        port: of the loopback interface.
        own_server: whether the SuperLink starts server apps (for ``flwr run``), or this process is the server.
        log: file for what it says.
        database: whether its state survives it in ``superlink.db``; rounds then take about a second more.

    Raises:
        SettingError: it does not come up within a minute.
    """
    keys = app / "certificates"
    words = [
        *(Path(sys.executable).parent / "flower-superlink", "--host", "127.0.0.1", "--port", str(port)),
        *("--ssl-certfile", keys / "server.pem", "--ssl-keyfile", keys / "server.key"),
        *("--ssl-ca-certfile", keys / "ca.pem", "--enable-supernode-auth", "--disable-runtime-dependency-installation"),
        *("--isolation", "subprocess" if own_server else "process"),
        *(("--database", app / "superlink.db") if database else ()),
    ]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    env = os.environ | QUIET | {"PATH": path, "FLWR_HOME": str(app / "flower")}
    with log.open("ab") as out:
        started = subprocess.Popen(
            [str(w) for w in words], stdin=subprocess.DEVNULL, stdout=out, stderr=out, env=env, cwd=app
        )
    clock = Clock()
    while started.poll() is None and clock.waited() < 60:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return started
        time.sleep(0.1)
    started.kill()
    raise SettingError(f"the SuperLink did not start on port {port}: see {log}")


def register(app: Path, address: str, names: Sequence[str]) -> None:
    """Tell a SuperLink of the public keys of these nodes."""
    with _control(app, address) as control:
        for name in names:
            public = load_ssh_public_key((app / "nodes" / f"{name}.pub").read_bytes())
            control.RegisterNode(RegisterNodeRequest(public_key=public_key_to_bytes(public)))  # type: ignore[arg-type]


@contextmanager
def grid(app: Path, address: str) -> Iterator[HttpGrid]:
    """The server's end of a SuperLink that was started with ``own_server=False``."""
    trusted = (app / "certificates" / "ca.pem").read_bytes()
    with _control(app, address) as control:
        bundle = build_fab_from_disk(app)
        made = control.StartRun(StartRunRequest(fab=fab_to_proto(Fab("", bundle, {}))))
        if not made.run_id:
            raise SettingError(f"the SuperLink at {address} did not take the run: see its log")
    version = [RuntimeVersionHttpInterceptor(component_name="flwr-serverapp")]
    executor = RuntimeHttpClient.from_server_address(address, False, trusted, version)
    task = executor.AcquireTask(AcquireTaskRequest(supported_task_types=[TaskType.SERVER_APP]))
    executor.close()
    made_grid = HttpGrid(address, False, trusted, token=task.token)
    heart = HeartbeatSender(make_task_heartbeat_fn_http(made_grid._runtime_client))
    status, details = "failed", "the run was stopped"
    try:
        heart.start()
        given = made_grid._runtime_client.PullTaskInput(PullTaskInputRequest())
        made_grid.set_run(run_from_proto(given.run))
        TaskIdentity.task_id, TaskIdentity.run_id = given.task_id, given.run.run_id
        TaskIdentity.node_id = given.context.node_id
        made_grid._retry_invoker.max_time = PATIENCE
        yield PromptGrid(made_grid)
        status, details = "completed", ""
    except httpx.TransportError as error:
        raise ConnectionError(f"the SuperLink at {address} has not answered for {PATIENCE:.0f} s ({error})") from None
    finally:
        made_grid._retry_invoker.max_tries = 1
        with suppress(httpx.HTTPError):  # the SuperLink may be gone, and with it the task
            made_grid._runtime_client.PushTaskOutput(PushTaskOutputRequest(sub_status=status, details=details))
        if heart.is_running:  # not if the SuperLink has refused it
            heart.stop()
        made_grid.close()


@contextmanager
def _control(app: Path, address: str) -> Iterator[Any]:
    trusted = (app / "certificates" / "ca.pem").read_bytes()
    version = [RuntimeVersionHttpInterceptor(component_name="flwr-cli")]
    client = ControlHttpClient.from_server_address(address, False, trusted, version)
    try:
        yield client
    finally:
        client.close()
