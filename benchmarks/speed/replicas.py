"""S8: 4 learning rates x 3 seeds of FedProx, as one program against one run after the other.

Logistic regression, 1,000 clients with 60 examples each, 100 in a round, batches of 10, one epoch. Both ways are timed
in one process, in turn, with batched runs; preparing the runs and judging them is not counted. With --features 0 the
examples are MNIST digits, which WEFT_DATA must hold; else they are drawn, with so many features.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch

from weft.core.registry import find
from weft.data.federated import FederatedData, Rows
from weft.data.load import load
from weft.data.manifest import manifest
from weft.data.source import Source
from weft.experiment import joint
from weft.experiment.plugins import load_methods
from weft.experiment.run import Run
from weft.experiment.settings import RunSettings

CLIENTS, EACH, TESTS = 1000, 60, 10
GRID = [(lr, seed) for lr in (0.01, 0.03, 0.05, 0.1) for seed in (0, 1, 2)]


def drawn(features: int) -> Source:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(CLIENTS * (EACH + TESTS), features)).astype(np.float32)
    y = (x @ rng.normal(size=(features, 10))).argmax(1)
    none, one = np.zeros(1, np.float32), np.ones(1, np.float32)
    return Source("drawn", "tabular", x, y, 10, np.arange(len(x)) >= CLIENTS * EACH, None, None, none, one)


def federated(source: Source) -> FederatedData:
    train = np.random.default_rng(0).permutation(np.flatnonzero(~source.test)[: CLIENTS * EACH])
    test = np.flatnonzero(source.test)[: CLIENTS * TESTS]
    rows = {"train": np.split(train, CLIENTS), "validation": [train[:0]] * CLIENTS, "test": np.split(test, CLIENTS)}
    splits = {name: Rows.of(parts) for name, parts in rows.items()}
    note = manifest(source, splits, np.zeros(0, np.int64), {"protocol": "official"})
    return FederatedData(source, **splits, protocol="official", manifest=note)


def apart(runs: Sequence[Run]) -> None:
    for run in runs:
        run.go()


def together(runs: Sequence[Run]) -> None:
    for end in joint.go(runs):
        if end.error:
            raise end.error


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--features", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--blocks", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    load_methods()
    data = federated(drawn(asked.features) if asked.features else load("mnist"))
    base = RunSettings(rounds=asked.rounds, cohort=100, batch_size=10, model="logistic", device="cpu")
    first = Run.prepare(find("fedprox").make(), data, base)
    Run._evaluate = lambda *_: {}  # type: ignore[method-assign]
    Run._summary = lambda *_: {}  # type: ignore[method-assign]
    Run.result = lambda *_: None  # type: ignore[method-assign, assignment, return-value]
    ways: dict[str, Callable[[Sequence[Run]], None]] = {"apart": apart, "together": together}
    wall: dict[str, list[float]] = {name: [] for name in ways}
    cpu: dict[str, list[float]] = {name: [] for name in ways}
    for block in range(asked.blocks + 1):  # the first one warms up: its traces are kept
        for name in list(ways)[:: 1 if block % 2 else -1]:
            runs = [
                Run.prepare(find("fedprox").make(lr=lr), data, replace(base, seed=seed, init_seed=seed), like=first)
                for lr, seed in GRID
            ]
            began = time.perf_counter(), time.process_time()
            ways[name](runs)
            if block:
                wall[name].append((time.perf_counter() - began[0]) / asked.rounds / len(GRID))
                cpu[name].append((time.process_time() - began[1]) / asked.rounds / len(GRID))
    print(f"{first.probe.flops_per_step:.0f} operations in a step, load {os.getloadavg()[0]:.1f}")
    for kind, times in (("wall", wall), ("processor", cpu)):
        a, b = (1e3 * np.median(times[name]) for name in ways)
        print(f"{kind}: {a:.1f} ms a round and run apart, {b:.1f} ms together: {a / b:.2f} times as fast")


if __name__ == "__main__":
    main()
