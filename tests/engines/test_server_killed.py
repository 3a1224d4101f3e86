"""``flwr run`` on a SuperLink that is killed and started again: the run goes on after the last finished round."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.utils._pytree import tree_leaves

from tests.engines.setting import data_settings, run_settings, write_examples
from weft.experiment import checkpoint
from weft.experiment.plugins import load_methods
from weft.experiment.run import Run
from weft.experiment.settings import make
from weft.experiment.sources import federated

pytest.importorskip("flwr", reason="weft[flower] is not installed")
load_methods()
ROUNDS, SECONDS = 4, 240


def flwr_run(app: Path) -> None:
    from weft.deploy.superlink import QUIET

    env = os.environ | QUIET | {"FLWR_HOME": str(app / "flower")}
    flwr = Path(sys.executable).parent / "flwr"
    done = subprocess.run([flwr, "run", app, "weft"], env=env, capture_output=True, text=True, timeout=SECONDS)
    assert done.returncode == 0, done.stdout + done.stderr


def below(process: int) -> list[int]:
    """The processes that a process has started, and those that they have."""
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            number, _, rest = status.read_text().partition(" (")
            if int(rest.rpartition(")")[2].split()[1]) == process:
                found += [int(number), *below(int(number))]
        except (OSError, ValueError):
            continue
    return found


def wait(what: str, so: object, network: object) -> None:
    until = time.monotonic() + SECONDS
    while not so():  # type: ignore[operator]
        assert time.monotonic() < until, f"{what}: {network.log('superlink')[-3000:]}"  # type: ignore[attr-defined]
        time.sleep(0.1)


def test_the_server_is_killed_and_started_again(tmp_path: Path) -> None:
    from tests.engines.warm import WarmNetwork
    from weft.deploy.app import init
    from weft.deploy.superlink import free_port

    write_examples(tmp_path)
    method, port, app = make("scaffold", {"lr": 0.1}), free_port(), tmp_path / "app"
    data = replace(data_settings(tmp_path / "points.npz"), clients=2)
    settings = run_settings(cohort=1.0, rounds=ROUNDS, evaluate_every=100)
    init(app, method, data, settings, nodes=2, port=port, min_clients=2, hosts=("127.0.0.1",))
    with WarmNetwork(app, port, own_server=True, database=True) as network:
        network.join("node-0", "node-1")
        flwr_run(app)
        wait("a round", lambda: (app / "run/checkpoint/round-000001").exists(), network)
        assert network.superlink
        others = below(network.superlink.pid)
        os.kill(network.superlink.pid, signal.SIGKILL)
        network.superlink.wait()
        wait("its processes end", lambda: not any(Path(f"/proc/{p}").exists() for p in others), network)
        done = checkpoint.latest(app / "run")
        assert done and 1 <= int(done.name[-6:]) < ROUNDS
        network.start()
        flwr_run(app)
        wait("all rounds", lambda: (app / f"run/checkpoint/round-{ROUNDS:06d}").exists(), network)
        assert all(process.poll() is None for process in network.nodes.values()), "nodes have waited for it"
    assert "is there again" in network.log("node-0")
    assert len(list((app / "nodes/node-0-state").iterdir())) == 1, "a run that begins anew has another name there"
    here = Run.prepare(method, federated(data), settings)
    here.go()
    place = checkpoint.latest(app / "run")
    assert place
    from safetensors.torch import load_file

    theirs = sorted(load_file(place / "state.safetensors").values(), key=lambda x: (x.numel(), float(x.double().sum())))
    for leaf in tree_leaves(here.federation.server):
        assert any(x.shape == leaf.shape and torch.allclose(x, leaf, rtol=0, atol=1e-9) for x in theirs), leaf.shape
