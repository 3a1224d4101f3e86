"""The server's end of a federation over a network."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from flwr.app import Context
from flwr.serverapp import Grid, ServerApp
from flwr.superlink.grid import HttpGrid

from weft.core.clients import Clients
from weft.core.errors import SettingError
from weft.core.here import Here
from weft.core.method import Method
from weft.data.federated import FederatedData, Rows
from weft.data.manifest import manifest
from weft.data.source import Source
from weft.deploy.call import call
from weft.deploy.clients import Remote
from weft.deploy.likes import Likes
from weft.deploy.prompt import PromptGrid
from weft.deploy.secure import Secure
from weft.experiment.cohort import able, expected
from weft.experiment.plugins import load_methods
from weft.experiment.protection import protection
from weft.experiment.run import RoundReport, Run
from weft.experiment.settings import RunSettings, Settings

log = logging.getLogger("weft.federation")


def elsewhere(
    grid: Grid, method: Method, data: FederatedData, settings: RunSettings, **how: Any
) -> Callable[[Method, Here], Clients]:
    """What gives a run its clients at the nodes of a grid, from the method with its parts on and clients like them.

    `how`: `deadline` and `min_clients` of `Remote`.

    Raises:
        SettingError: the method needs what nodes cannot have.
    """
    if "pooled data" in method.needs:
        raise SettingError(f"{method.name} pools everybody's data, which stay at their nodes here: use fedavg")

    def made(parts: Method, here: Here) -> Clients:
        population, guard = data.clients(), protection(method, data, settings)
        known = Likes(parts, here, int(able(data)[0]))
        told = call("", method, settings, population, guard.privacy if guard else None)
        remote = Remote(grid, told, parts, here.groups, known, **how)
        if settings.secure_aggregation:
            remote.uploads = Secure(settings.secure_range, settings.secure_weight, settings.secure_threshold)
            remote.least = max(remote.least, _hiding(population, settings))
        return remote

    return made


def _hiding(population: int, settings: RunSettings) -> int:
    """The fewest clients of which a round can be had that hides what each of them sends."""
    needed = max(2, settings.secure_threshold)
    return next((n for n in range(needed, population) if expected(n, settings) >= needed), population)


def server_app(path: Path) -> ServerApp:
    """A Flower app that plays the rounds that a settings file of `weft deploy init` asks for."""
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", force=True)
        assert isinstance(grid, HttpGrid)
        threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
        found = yaml.safe_load(path.read_text())
        how = found.pop("deploy")
        load_methods(tuple(how["plugins"]))
        settings = Settings.read(found)
        chosen = replace(settings.run, executor="flower")
        data = stand_in(how["examples"], how["clients"])
        out = Path(str(context.run_config["out"]))
        places = elsewhere(
            PromptGrid(grid), settings.method, data, chosen, deadline=how["deadline"], min_clients=how["min_clients"]
        )
        again = (out / "settings.yaml").exists()
        run = Run.prepare(settings.method, data, chosen, None, out, again, elsewhere=places)
        log.info("%s from round %d of %d", settings.method.name, run.done + 1, chosen.rounds)
        run.go(_told)
        log.info("finished: %s", out)

    return app


def _end_with(parent: int) -> None:
    """End this process when the one that has started it is gone.

    Flower 1.41 sees that, too, but by a signal to a thread of its own, which does not wake a main thread that waits for
    a lock: a server app would live on until a SuperLink is there again, beside the one that goes on with its run.
    """
    while os.getppid() == parent:
        time.sleep(1)
    os.kill(os.getpid(), signal.SIGTERM)


def _told(report: RoundReport) -> None:
    figures = ", ".join(f"{name} {value:.4f}" for name, value in report.headline.items())
    played = (report.number, report.rounds, report.clients, report.seconds)
    log.info("round %d of %d: %d clients, %.1f s, %s", *played, figures)


def stand_in(facts: dict[str, Any], clients: int) -> FederatedData:
    """Data of the same shape for a server that has none: one example of zeros for each client, to build models with."""
    shape, kind = (clients, *facts["shape"]), facts["kind"]
    x = np.zeros(shape, dtype=facts["type"])
    y = np.zeros(shape if kind == "characters" else clients, dtype=np.int64)
    zero, one = np.zeros((), np.float32), np.ones((), np.float32)
    source = Source(
        "at the nodes", kind, x, y, facts["classes"], None, None, None, zero, one, vocabulary=facts["vocabulary"]
    )
    rows = Rows.of([np.array([k], dtype=np.int64) for k in range(clients)])
    none = Rows.of([np.zeros(0, dtype=np.int64)] * clients)
    recipe = {"partition": "at the nodes", "clients": clients}
    splits = {"train": rows, "validation": none, "test": none}
    note = manifest(source, splits, np.zeros(0, dtype=np.int64), recipe)
    return FederatedData(source, rows, none, none, protocol="official", manifest=note)
