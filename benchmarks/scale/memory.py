"""What memory does: over many rounds, over many runs of one process, and with many clients.

Resident memory is that of the process itself (RssAnon in /proc/self/status): pages of libraries and of files are
dropped and read again as the system likes. The peak (VmHWM) has them. Nothing is given back for the measurement. What
glibc has given out and not got back is told apart, since resident memory also has what was freed and lies between.
"""

from __future__ import annotations

import ctypes
import gc
import os
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

import weft
from weft.core.registry import find
from weft.data.federated import FederatedData
from weft.data.source import Source
from weft.experiment.plugins import load_methods
from weft.experiment.run import RoundReport, Run
from weft.experiment.settings import RunSettings, from_mapping

Row = dict[str, Any]
MIB = 2**20
ROUNDS, RUNS = 500, 100
ROUND = 100
"""Clients in a round of a large population."""


def resident() -> float:
    """Resident memory of this process now, MiB, without pages of files."""
    return status("RssAnon")


def peak() -> float:
    """The most resident memory so far, MiB; unlike ru_maxrss, without that of the process that started this one."""
    return status("VmHWM")


def status(name: str) -> float:
    """An entry of what the system says of this process, in MiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:")) / 1024


class _Glibc(ctypes.Structure):
    """`struct mallinfo2`."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in ("arena", "1", "2", "3", "hblkhd", "5", "6", "uordblks", "fordblks", "keepcost")
    ]


def in_use() -> float:
    """What glibc has given out, MiB: tensors and all that is not a small object of Python."""
    count = ctypes.CDLL(None).mallinfo2
    count.restype = _Glibc
    found = count()
    return float(found.uordblks + found.hblkhd) / MIB


def over_rounds(method: str) -> Iterator[Row]:
    """Resident memory after each of 500 rounds: an MLP, 10 of 100 unequal clients in a round, with a run folder.

    One more round follows, since a run judges its last one by all metrics: what these need comes once.
    """
    data = weft.federate(weft.load("mnist-10k"), partition="dirichlet", alpha=0.5, clients=100)
    found: list[Row] = []

    def tell(report: RoundReport) -> None:
        found.append({"round": report.number, "resident": resident(), "used": in_use()})

    settings = {"model": "mlp", "cohort": 10, "rounds": ROUNDS + 1, "evaluate_every": 10, "checkpoint_every": 10}
    with tempfile.TemporaryDirectory() as home:
        weft.run(method, data, out=Path(home) / "run", tell=tell, **settings)
    yield from found[:ROUNDS]


def over_runs() -> Iterator[Row]:
    """Resident memory and what else a process holds after each of 100 runs: five methods, each with four shapes."""
    source = weft.load("mnist-10k")
    methods, shapes = ("fedavg", "scaffold", "ditto", "fedala", "fedproto"), ((8, 10), (12, 10), (8, 20), (12, 20))
    with tempfile.TemporaryDirectory() as home:
        for k in range(RUNS):
            clients, batch_size = shapes[k // len(methods) % len(shapes)]
            data = weft.federate(source, partition="dirichlet", alpha=0.5, clients=clients)
            settings = {"model": "mlp", "cohort": 0.5, "rounds": 3, "batch_size": batch_size, "evaluate_every": 3}
            weft.run(methods[k % len(methods)], data, out=Path(home) / str(k) if k % 2 else None, seed=k, **settings)
            del data
            yield {"run": k + 1, "resident": resident(), **held()}


def held() -> Row:
    """How many tensors, threads, open files and temporary folders of Weft's there are, after a collection."""
    gc.collect()
    return {
        "tensors": sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects()),
        "threads": threading.active_count(),
        "files": len(os.listdir("/proc/self/fd")),
        "folders": len(list(Path(tempfile.gettempdir()).glob("weft-*"))),
    }


def population(method: str, clients: int) -> Iterator[Row]:
    """Logistic regression on noise, 100 of so many clients in a round, 10 rounds, judged twice, with a folder."""
    load_methods()
    source, took = noise(), [time.perf_counter()]

    def lap() -> float:
        took.append(time.perf_counter())
        return took[-1] - took[-2]

    data = weft.federate(source, partition="natural", clients=clients, validation=0.0)
    row: Row = {"clients": clients, "federate": lap()}
    settings = {"model": "logistic", "cohort": ROUND, "rounds": 10, "batch_size": 4, "evaluate_every": 5}
    with tempfile.TemporaryDirectory() as home:
        out = Path(home) / "run"
        run = Run.prepare(find(method).make(), data, from_mapping(RunSettings, settings), out=out)
        row["prepare"] = lap()
        totals = run.go().totals
        row |= {"run": lap(), **{part: totals[f"{part}_seconds"] for part in ("training", "evaluation", "checkpoint")}}
        row["folder"] = sum(p.stat().st_size for p in out.rglob("*") if p.is_file()) / MIB
    yield {**row, "peak": peak(), "indices": indices(data), "examples": source.x.nbytes / MIB}


def noise(people: int = 100_000, each: int = 5) -> Source:
    """As many examples in memory for any number of clients."""
    rng, n = np.random.default_rng(0), people * each
    x, y = rng.integers(0, 256, (n, 1, 28, 28), dtype=np.uint8), rng.integers(0, 10, n)
    shift, scale = np.float32([127.5]), np.float32([1 / 127.5])
    return Source("noise", "image", x, y, 10, None, np.arange(n) // each, None, shift, scale)


def indices(data: FederatedData) -> float:
    """What it takes to know who has which examples, MiB."""
    return sum(part.nbytes for rows in data.splits().values() for part in rows) / MIB
