"""The engine of a run: by which plan its clients run, and where."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch

from weft.core.clients import Clients
from weft.core.errors import SettingError
from weft.core.here import Here
from weft.core.method import Method
from weft.data.federated import FederatedData
from weft.executors import Plan, plan
from weft.experiment.settings import RunSettings
from weft.experiment.shipment import delivered, shipped


class Engine(NamedTuple):
    """How and where clients run."""

    plan: Plan
    about: str  # in a line
    spread: Callable[[Here], Clients] | None = None  # from this process to where they train, if that is elsewhere


def engine(
    method: Method,
    data: FederatedData,
    settings: RunSettings,
    model: Any,
    where: torch.device,
    *,
    flops: float,
    size: int,
) -> Engine:
    """The engine that the settings ask for.

    Args:
        method: as the user chose it.
        data: who has which examples.
        settings: of the run.
        model: a network that is not one by name, or None.
        where: the device of this process.
        flops: floating-point operations of one client's step.
        size: bytes of state that one client carries through its steps.

    Raises:
        SettingError: it is not there, or cannot take this run.
    """
    ask = partial(plan, flops_per_step=flops, bytes_per_client=size, chunk=settings.chunk)
    if settings.executor == "ray":
        return _cluster(method, data, settings, model, ask)
    chosen = ask(where, workers=settings.workers)
    about = f"batched, {chosen}" if settings.executor == "batched" else settings.executor
    return Engine(chosen, about)


def _cluster(
    method: Method, data: FederatedData, settings: RunSettings, model: Any, ask: Callable[..., Plan]
) -> Engine:
    try:
        from weft.executors.cluster import Cluster
        from weft.executors.pool import pool
    except ImportError as error:
        raise SettingError(f"executor = 'ray' needs Ray ({error}): pip install weft[ray]") from None
    cpus, gpus, actors = settings.actor_cpus, settings.actor_gpus, settings.actors
    shipped(method, settings, model, Plan(1, 1, ""))  # refused before anything is started
    if actors > data.clients():
        raise SettingError(f"actors = {actors} are more than the {data.clients()} clients: use at most as many")
    there = pool(actors, cpus, gpus, settings.ray_address)
    device = torch.device("cuda" if gpus else "cpu")
    chosen = ask(device, workers=settings.workers or max(1, int(cpus)), room=there.memory)
    shipment = shipped(method, settings, model, chosen)
    parts = f"{cpus:g} CPUs" + (f" and {gpus:g} GPUs" if gpus else "")
    about = f"ray, {actors} actors of {parts}, each {chosen}"
    return Engine(chosen, about, lambda here: Cluster(here, there, delivered, shipment, data))
