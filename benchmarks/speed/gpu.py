"""Weft on a GPU: python benchmarks/speed/gpu.py [--device cuda] [--only S5,S2] [--out benchmarks/speed/gpu.csv].

Against its own `loop` executor on the same device, with 100 clients in a round: one client after the other, each step
as the method is written. And the share of a round's time for which the device computes, from torch's profiler.
"""

# ruff: noqa: E402 (the path is set before the imports)
from __future__ import annotations

import argparse
import csv
import sys
import time
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

sys.path[0] = str(Path(__file__).resolve().parent)

import torch
from peers.weft import federated, run
from torch.profiler import DeviceType, ProfilerActivity, profile
from workloads import WORKLOADS, Prepared, Workload, load, prepare

from weft.core.round import play
from weft.experiment.run import Run

COHORT = 100


def settled(device: torch.device) -> float:
    """The time when the device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def rounds(made: Run, p: Prepared, warmup: int, timed: int) -> list[float]:
    """Seconds of rounds, after some that are not timed."""
    told = []
    for number, ids in enumerate(torch.from_numpy(p.cohorts[: warmup + timed]), 1):
        began = settled(made.device)
        made.federation = play(made.federation, number, ids).federation
        told.append(settled(made.device) - began)
    return told[warmup:]


def busy(made: Run, p: Prepared, timed: int) -> float:
    """The share of some rounds' time for which kernels ran."""
    if made.device.type != "cuda":
        return float("nan")
    with profile(activities=[ProfilerActivity.CUDA]) as seen:
        began = settled(made.device)
        rounds(made, p, 0, timed)
        whole = settled(made.device) - began
    spans = sorted((e.time_range.start, e.time_range.end) for e in seen.events() if e.device_type == DeviceType.CUDA)
    total = last = 0.0
    for start, end in spans:  # kernels may overlap
        total += max(0.0, end - max(start, last))
        last = max(last, end)
    return total / 1e6 / whole


def measured(like: Workload, home: Path, device: str, precision: str, warmup: int, timed: int) -> dict[str, Any]:
    """A row of the table."""
    workload = replace(like, name=f"{like.name}-{COHORT}", cohort=min(COHORT, like.clients))
    folder = home / "data" / workload.name
    prepare(workload, folder)
    p = load(workload, folder)
    found: dict[str, Any] = {"workload": like.name, "cohort": workload.cohort, "precision": precision}
    for executor in ("batched", "loop"):
        made = run(p, federated(p), precision, workload.lr, p.first, device=device, executor=executor)
        found[executor] = median(rounds(made, p, warmup, timed))
        if executor == "batched":
            found["busy"] = busy(made, p, timed)
            found["plan"] = str(made.engine.plan)
    return {**found, "ratio": found["loop"] / found["batched"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="S5,S2", help="workloads, with commas")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--precision", default="fp32", help="with commas: fp32, tf32, bf16")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--warmup", type=int, default=2)
    parser.add_argument("--home", type=Path, default=Path("runs/speed"))
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("gpu.csv"))
    asked = parser.parse_args()
    told = [
        measured(WORKLOADS[name], asked.home, asked.device, precision, asked.warmup, asked.rounds)
        for precision in asked.precision.split(",")
        for name in asked.only.split(",")
    ]
    about = torch.cuda.get_device_name() if asked.device.startswith("cuda") else asked.device
    with asked.out.open("w", newline="") as file:
        writer = csv.DictWriter(file, ["device", "torch", *told[0]])
        writer.writeheader()
        writer.writerows({"device": about, "torch": torch.__version__, **row} for row in told)
    for row in told:
        print(
            f"{row['workload']} {row['precision']}: {row['batched']:.3f} s a round, loop {row['loop']:.3f} s, "
            f"{row['ratio']:.1f} times; busy {row['busy']:.0%}"
        )


if __name__ == "__main__":
    main()
