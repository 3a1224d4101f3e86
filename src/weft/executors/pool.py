"""Ray and its actors: processes on the machines of a cluster, each with some CPUs and GPUs."""

from __future__ import annotations

import logging
import os
import secrets
import signal
import threading
import warnings
from collections.abc import Mapping
from typing import Any

from weft.core.errors import SettingError
from weft.executors.place import Place, versions
from weft.executors.plan import cores

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Ray would tell its makers
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # else it warns of what it will do some day
os.environ.setdefault("RAY_worker_niceness", "0")  # actors are the run, not something beside it
import ray

PATIENCE = 300.0
"""Seconds in which an actor must have started."""

_latest: dict[Any, Pool] = {}


def pool(actors: int, cpus: float, gpus: float, address: str = "") -> Pool:
    """A pool of so many actors. It stays for the next run that asks for the same, until one asks for others.

    Raises:
        SettingError: the cluster is not there, or is too small, or has another Weft.
    """
    _start(address)
    wanted = (ray.get_runtime_context().get_job_id(), actors, cpus, gpus, address)
    if wanted not in _latest:
        said = f"the cluster at {address}" if address else "this machine"
        _refuse_too_many(said, actors, cpus, gpus)  # before those that are there are given up for them
        _latest.clear()
        _latest[wanted] = Pool(actors, cpus, gpus, said)
    return _latest[wanted]


class Pool:
    """Actors of one kind. Each is a `Place`."""

    def __init__(self, actors: int, cpus: float, gpus: float, said: str) -> None:
        """See `pool`; Ray must be running. `said`: where they are, in words."""
        self._said = said
        # a lost actor is not restarted by Ray, which could not give it back what its clients keep
        self._kind = ray.remote(Place).options(
            num_cpus=cpus, num_gpus=gpus, max_restarts=0, scheduling_strategy="SPREAD"
        )
        self._fixed = (cpus, gpus)
        self.actors: list[Any] = [self._kind.remote(*self._fixed) for _ in range(actors)]
        self.memory = min(found["memory"] for found in self._started(self.actors))

    def replaced(self, place: int, lost: Any) -> Any:
        """The actor at a place where `lost` was, which is given up; a new one, unless somebody has put one there.

        Raises:
            SettingError: a new one does not start in time.
        """
        if self.actors[place] is lost:
            ray.kill(lost)
            self.actors[place] = self._kind.remote(*self._fixed)
            self._started([self.actors[place]])
        return self.actors[place]

    def _started(self, actors: list[Any]) -> list[Mapping[str, Any]]:
        """What actors say of themselves, once they have started."""
        asked = [actor.about.remote() for actor in actors]
        ready, late = ray.wait(asked, num_returns=len(asked), timeout=PATIENCE)
        if late:
            raise SettingError(
                f"actors = {len(self.actors)}: {len(late)} have not started on {self._said} in {PATIENCE:.0f} s, since "
                "others use its processors: ask for fewer, or for a part of a processor with actor_cpus"
            )
        found: list[Mapping[str, Any]] = ray.get(ready)
        for name, ours in versions().items():
            if wrong := next((f[name] for f in found if f[name] != ours), None):
                raise SettingError(f"{self._said} has {name} {wrong}, and here is {ours}: install the same there")
        return found


def _start(address: str) -> None:
    """Join the cluster at an address, or start one of this process's own; nothing if Ray is running here already."""
    if ray.is_initialized():
        return
    before = signal.getsignal(signal.SIGTERM)
    own: dict[str, Any] = {}
    if not address:
        own = {"num_cpus": cores(), "include_dashboard": False}
        if "RAY_AUTH_MODE" not in os.environ:  # a password of its own; else Ray leaves one in the user's folder
            os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)  # it leaves files open
            ray.init(address=address or "local", log_to_driver=False, logging_level=logging.ERROR, **own)
    except Exception as error:  # Ray raises this very class when its processes are late
        reason = " ".join(str(error).split())
        there = f"ray_address = {address!r} cannot be joined" if address else "Ray does not start on this machine"
        raise SettingError(
            f"{there} ({reason}): start a cluster with `ray start --head` and name its address, with "
            "RAY_AUTH_MODE=token and its token if it has one, or leave the address out to have one of your own"
        ) from None
    finally:
        if before and threading.current_thread() is threading.main_thread():  # Ray's handler would tidy nothing up
            signal.signal(signal.SIGTERM, before)


def _refuse_too_many(where: str, actors: int, cpus: float, gpus: float) -> None:
    there: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    for kind, setting, each in (("CPU", "actor_cpus", cpus), ("GPU", "actor_gpus", gpus)):
        has = there.get(kind, 0.0)
        if actors * each > has + 1e-6:
            raise SettingError(
                f"actors = {actors} with {setting} = {each:g} are more than the {has:g} {kind}s of {where}: ask for "
                f"fewer actors, or for a smaller part with {setting}"
            )
