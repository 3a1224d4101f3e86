"""A run on the actors of a Ray cluster is the run on one machine; and what cannot be one is refused in a sentence."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.experiment.small import RUN, archive, figures, source, weft
from torch.utils._pytree import tree_leaves

import weft as api
from weft.core import SettingError, method
from weft.core.registry import REGISTRY
from weft.data.federated import FederatedData
from weft.data.source import Source
from weft.experiment.plugins import load_methods
from weft.experiment.result import Result
from weft.experiment.shipment import same
from weft.methods.fedavg import fedavg
from weft.wire import TopK

load_methods()
ray = pytest.importorskip("ray", reason="weft[ray] is not installed")
RAY: dict[str, Any] = {"executor": "ray", "actors": 2, "actor_cpus": 0.5}
BASE: dict[str, Any] = {"model": "mlp", "rounds": 2, "precision": "fp64", "device": "cpu"}


def people(**given: Any) -> FederatedData:
    """Six natural clients of thirty examples."""
    return api.federate(source(owner=np.arange(180) % 6), partition="natural", **given)


def poisoned() -> FederatedData:
    """Client 2 has an infinite feature."""
    plain = people()
    changed, x = object.__new__(Source), plain.source.x.copy()
    x[plain.train.client(2)[0]] = np.inf
    for name, value in {**vars(plain.source), "x": x}.items():
        object.__setattr__(changed, name, value)
    return FederatedData(changed, **plain.splits(), protocol=plain.protocol, manifest=plain.manifest)


def stranger() -> dict[str, str]:
    """The environment of a process that knows nothing of this one's cluster."""
    return {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}


def state(result: Result) -> list[torch.Tensor]:
    """All that server and clients hold."""
    f = result.federation
    return tree_leaves((f.server, dict(f.then), [result.here.states(g.ids) for g in f.groups], f.turns))


def apart(a: Result, b: Result) -> float:
    """Largest difference between two runs: states, and all metrics but times."""
    left, right = ({tuple(r.values())[:-1]: r["value"] for r in x.history.to_pylist()} for x in (a, b))
    assert left.keys() == right.keys()
    told = [(left[k], right[k]) for k in left if "seconds" not in k[-1]]
    assert all((x != x) == (y != y) for x, y in told)
    pairs = list(zip(state(a), state(b), strict=True))
    assert [x.shape for x, _ in pairs] == [y.shape for _, y in pairs]
    gaps = [float((x.double() - y.double()).abs().max()) for x, y in pairs if x.numel()]
    return max(*gaps, *(abs(x - y) for x, y in told if x == x))


RUNS: dict[str, tuple[str, dict[str, Any]]] = {
    "mixed architectures": ("fedproto", {"model": "mlp,mlp", "cohort": 3}),
    "pooled data": ("central", {}),
    "an opening": ("feddbe", {"cohort": 4}),
    "two exchanges": ("mime", {"cohort": 4}),
    "downloads of one's own": ("fedamp", {"cohort": 4}),
    "views that adapt": ("fedavg-ft", {}),
    "a codec with memory, and stragglers": ("scaffold", {"compress": "topk:0.3", "stragglers": 0.5, "epochs": 3}),
    "plug-ins, with chance in who takes part": ("fedavg", {"plug": ("dbe",), "sampling": "poisson", "cohort": 4}),
    "central privacy": ("fedavg", {"dp": "central", "dp_noise": "stream", "cohort": 4}),
    "local privacy": ("scaffold", {"dp": "local", "dp_noise": "stream", "cohort": 4}),
    "statistics at home": ("ditto", {"buffers": "local", "lr_schedule": "cosine"}),
}


@pytest.mark.parametrize("name", RUNS)
def test_a_run_on_actors_is_the_run_on_one_machine(name: str) -> None:
    chosen, settings = RUNS[name]
    a, b = (api.run(chosen, people(), **{**BASE, **settings, **where}) for where in ({}, RAY))
    assert apart(a, b) <= 1e-9
    assert b.summary["executor"] == "ray" and b.summary["plan"].startswith("ray, 2 actors of 0.5 CPUs")


def test_secure_sums_over_actors() -> None:
    """Up to a unit of the fixed point, which rounds the last bit of what actors compute either way."""
    a, b = (api.run("fedavg", people(), **{**BASE, **where, "secure_aggregation": True}) for where in ({}, RAY))
    assert apart(a, b) <= 1e-6


def test_new_clients_are_judged_at_the_actors() -> None:
    data = people(new_clients=0.4)
    a, b = (api.run("ditto", data, **{**BASE, **where}) for where in ({}, RAY))
    assert apart(a, b) <= 1e-9 and any(r["group"] == "new" for r in b.history.to_pylist())
    x = data.source.x[:5]
    assert np.allclose(a.predictor(client=1)(x), b.predictor(client=1)(x), atol=1e-9)


def test_a_bad_upload_is_named_or_left_out() -> None:
    a, b = (api.run("scaffold", poisoned(), **{**BASE, **where, "on_nan": "skip"}) for where in ({}, RAY))
    assert apart(a, b) <= 1e-9 and b.federation.turns.tolist() == [2, 2, 0, 2, 2, 2]
    with pytest.raises(ArithmeticError, match="round 1: what client 2 sent on channel 'model' is not finite"):
        api.run("fedavg", poisoned(), **BASE, **RAY)


@pytest.mark.parametrize("first", ["batched", "ray"])
def test_a_run_goes_on_with_another_executor(first: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from weft.experiment import run as running

    base: dict[str, Any] = {**BASE, "rounds": 4, "cohort": 4, "compress": "topk:0.3"}
    order = [{}, RAY] if first == "batched" else [RAY, {}]
    whole = api.run("ditto", people(), out=tmp_path / "whole", **base)
    play = running.play

    def stopped(federation: Any, number: int, *rest: Any, **more: Any) -> Any:
        if number == 3:
            raise KeyboardInterrupt
        return play(federation, number, *rest, **more)

    with monkeypatch.context() as patch:
        patch.setattr(running, "play", stopped)
        with pytest.raises(KeyboardInterrupt):
            api.run("ditto", people(), out=tmp_path / "run", **{**base, **order[0]})
    rest = api.run("ditto", people(), out=tmp_path / "run", resume=True, **{**base, **order[1]})
    assert apart(whole, rest) <= 1e-9


def test_on_the_command_line_at_the_address_of_a_cluster(tmp_path: Path) -> None:
    """A process of its own joins the cluster that this one has started."""
    data = archive(tmp_path / "data.npz")
    api.run("fedavg", people(), **{**BASE, **RAY, "rounds": 1})  # the cluster is there
    words = ["run", "ditto", *RUN, "--precision", "fp64", "--quiet", "--data", data, "--out"]
    assert weft(*words, tmp_path / "here") == 0
    there = [*words, tmp_path / "there", "--executor", "ray", "--actors", "1", "--actor-cpus", "0"]
    assert weft(*there) == 2
    there[-1:] = ["0.01", "--ray-address", ray.get_runtime_context().gcs_address]
    command = [sys.executable, "-m", "weft.cli", *map(str, there)]
    told = {name: os.environ[name] for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN")}
    done = subprocess.run(command, env=stranger() | told, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    ours, theirs = figures(tmp_path / "here"), figures(tmp_path / "there")
    known = [k for k in ours if ours[k] != "NaN"]
    assert ours.keys() == theirs.keys() and known == [k for k in theirs if theirs[k] != "NaN"]
    assert max(abs(ours[k] - theirs[k]) for k in known) <= 1e-9


@pytest.mark.parametrize("guess", [{}, {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64}])
def test_a_stranger_cannot_join_the_cluster_that_a_run_has_started(guess: dict[str, str]) -> None:
    """It listens on all interfaces, and runs what it is sent."""
    api.run("fedavg", people(), **{**BASE, **RAY, "rounds": 1})  # the cluster is there
    words = ["run", "fedavg", "--clients", "4", "--executor", "ray", "--actor-cpus", "0.01", "--ray-address"]
    command = [sys.executable, "-m", "weft.cli", *words, ray.get_runtime_context().gcs_address]
    impatient = {"RAY_NUM_REDIS_GET_RETRIES": "1"}  # of twenty, one a second
    done = subprocess.run(command, env=stranger() | guess | impatient, capture_output=True, text=True, timeout=300)
    assert done.returncode == 2 and "InvalidAuthToken" in done.stderr
    assert "cannot be joined" in done.stderr and "RAY_AUTH_MODE=token" in done.stderr


def test_a_run_that_is_refused_leaves_the_actors() -> None:
    """Starting them takes seconds, and another run may have use of them."""
    from weft.executors.pool import pool

    before = pool(2, 0.5, 0.0)
    with pytest.raises(SettingError, match="are more than"):
        pool(2, 1000.0, 0.0)
    assert pool(2, 0.5, 0.0) is before


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"actors": 0}, "actors = 0 leaves nobody to train"),
        ({"actors": 7}, "actors = 7 are more than the 6 clients"),
        ({"actor_cpus": 0.0}, "actor_cpus = 0 can't be had"),
        ({"actor_cpus": 1.5}, "actor_cpus = 1.5 can't be had"),
        ({"actor_gpus": -1.0}, "actor_gpus = -1 can't be had"),
        ({"actor_gpus": 0.5}, "actor_gpus = 0.5 has no use with device = 'cpu'"),
        ({"device": "cuda:0"}, "device = 'cuda:0' needs actors with GPUs"),
        ({"device": "auto", "actor_gpus": 1.0}, "actors = 2 with actor_gpus = 1 are more than the 0 GPUs"),
        ({"actor_cpus": 1000.0}, r"actors = 2 with actor_cpus = 1000 are more than the \d+ CPUs of this machine"),
        ({"model": torch.nn.Linear(4, 3)}, "knows? it by name|know it by name only"),
    ],
)
def test_settings_that_cannot_be_had_are_refused(settings: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=said):
        api.run("fedavg", people(), out=tmp_path / "r", **{**BASE, **RAY, **settings})
    assert not (tmp_path / "r").exists()


def test_a_method_that_its_name_does_not_make_is_refused() -> None:
    tuned = api.tune(api.fedavg(), "model", encode=TopK(0.5))
    with pytest.raises(SettingError, match="this fedavg is more than they make"):
        api.run(tuned, people(), **BASE, **RAY)
    try:
        method("Mine", "test", name="of-the-main-program")(fedavg.__wrapped__)  # type: ignore[attr-defined]
        made = REGISTRY["of-the-main-program"].make
        made.__module__ = "__main__"
        with pytest.raises(SettingError, match="of-the-main-program stands in the main program"):
            api.run(made(), people(), **BASE, **RAY)
    finally:
        del REGISTRY["of-the-main-program"]


@pytest.mark.parametrize("name", sorted(REGISTRY))
def test_every_method_is_made_by_its_name_and_arguments(name: str) -> None:
    """And told from one with other numbers."""
    made = REGISTRY[name].make()
    assert same(made, REGISTRY[name].make(**made.args))
    assert not same(made, replace(made, work=lambda net, task: made.work(net, task)))
    if "opt" in REGISTRY[name].options:
        assert not same(made, REGISTRY[name].make(lr=0.0625))


def test_without_ray_a_sentence_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "weft.executors.cluster", None)
    with pytest.raises(SettingError, match=r"executor = 'ray' needs Ray \(.*\): pip install weft\[ray\]"):
        api.run("fedavg", people(), **BASE, **RAY)


def test_the_status_lists_actors_and_the_loss_of_one(tmp_path: Path) -> None:
    """A killed actor is a failure with its cause; a new one has its place, and the run goes on."""
    from weft.executors.pool import pool
    from weft.report.live import read

    def kill(report: Any) -> None:
        if report.number == 1:
            ray.kill(pool(2, 0.5, 0.0, "").actors[1])

    api.run("fedavg", people(), out=tmp_path / "run", tell=kill, **BASE, **RAY)
    (run,) = read(str(tmp_path / "run"))
    assert run.state == "finished" and sorted(n.name for n in run.nodes) == [f"actor {k}" for k in range(2)]
    assert {n.state for n in run.nodes} == {"ready"} and not any(n.cause for n in run.nodes)
    assert [f.who for f in run.failures] == ["actor 1"] and "another takes its share" in run.failures[0].cause
