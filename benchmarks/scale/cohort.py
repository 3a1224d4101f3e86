"""What a training round costs as its cohort grows: FedAvg with an MLP, and a plain loop over the same clients.

The workload is that of the speed benchmark's S1, but for its 1,000 clients: 60 of MNIST's digits each, or 8 of the
embedded subset's where WEFT_DATA does not name a folder.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "speed"))

import torch
from peers import sequential
from peers import weft as ours
from workloads import WORKLOADS, Prepared, Raw, draw_cohorts, prepare
from workloads import load as prepared

import weft

COHORTS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)
WARMUP, MOST, LEAST = 3, 30, 6
"""Rounds that are not timed, and those that are; of large cohorts fewer."""

Row = dict[str, Any]


def measure(home: Path) -> Iterator[Row]:
    """The rounds' seconds of both, cohort by cohort."""
    whole = "WEFT_DATA" in os.environ
    workload = replace(WORKLOADS["S1"], name="scale", clients=max(COHORTS), sizes=60 if whole else 8)
    p = prepared(workload, prepare(workload, home / "data" / "scale", None if whole else embedded()))
    data, trainer = ours.federated(p), sequential.Trainer(p)
    for cohort in COHORTS:
        here = p._replace(workload=replace(workload, cohort=cohort))
        timed = min(MOST, max(LEAST, 300 // cohort))
        cohorts = draw_cohorts(here.workload, WARMUP + timed, workload.seed)
        made = ours.run(here, data, "fp32", workload.lr, p.first)
        told = ours.rounds(made, cohorts, workload.seed, 0)[WARMUP:]
        yield {"peer": "Weft", "cohort": cohort, "seconds": [s for s, _, _ in told], "steps": told[0][2]}
        own = trained(here._replace(cohorts=cohorts), trainer, timed)
        yield {"peer": "plain loop", "cohort": cohort, "seconds": own, "steps": trainer.steps}


def trained(p: Prepared, trainer: sequential.Trainer, timed: int) -> list[float]:
    """The rounds' seconds of the plain loop."""
    torch.manual_seed(p.workload.seed)
    trainer.prepared, trainer.workload = p, p.workload
    told, _, _ = sequential.played(trainer, timed, WARMUP)
    return [s for s, _, _ in told]


def embedded() -> Raw:
    """The subset of MNIST that is in the package."""
    source = weft.load("mnist-10k")
    order = source.test.argsort(kind="stable")  # the test split last
    about = f"MNIST, {len(source.y):,} digits"
    scaling = (source.shift, source.scale)
    return Raw(source.x[order], source.y[order], int(source.test.sum()), *scaling, 10, 0, None, None, about)
