"""What bounds a round of Weft on this machine: python benchmarks/speed/limits.py [--only S1,S3] [--home runs/speed].

For each workload: the floating-point operations and bytes of a round, counted; what this machine does of either at
best, measured in the same minute, and how far its cores are in each other's way; where the time of a round goes; and
how long torch's operations and machine code of a round take by themselves, when one core runs them one after the other.
Results are JSON files in HOME/limits, which page.py shows.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import torch
from peers import weft as ours
from run import IN_BF16
from torch.profiler import ProfilerActivity, profile, record_function
from workloads import WORKLOADS, Prepared, Workload, grid, load, prepare

from weft.compiled import Program
from weft.core.parallel import intra_op, side_by_side
from weft.core.round import play
from weft.executors.plan import cores
from weft.experiment.account import Account, measured
from weft.experiment.run import Run

ROUNDS = 5
LARGEST = 8
"""Operations that are told apart; the others are one row."""

Round = Callable[[Account], None]


def limits(w: Workload, precision: str, folder: Path) -> dict[str, Any]:
    """Counts and times of one round."""
    p = load(w.name, folder)
    made, again, work = _rounds(p, precision, workers=0)
    with made.cores():
        seconds, parts = _timed(again)
    alone = _rounds(p, precision, workers=1)[1]
    with intra_op(1):
        one_core, _ = _timed(alone)
        with _told_apart(), profile(activities=[ProfilerActivity.CPU]) as seen:
            _timed(alone, warm=0)
    told = [(e.key.removeprefix("aten::"), e.self_cpu_time_total / 1e6, e.count) for e in seen.key_averages()]
    found = sorted(((name, s / ROUNDS, n / ROUNDS) for name, s, n in told), key=lambda row: -row[1])
    rest = found[LARGEST:]
    others = (f"{len(rest)} others", sum(s for _, s, _ in rest), sum(n for _, _, n in rest))
    cpu = torch.device("cpu")
    return {
        "workload": w.name,
        "precision": precision,
        "runs": len(list(grid(w))) if w.kind == "sweep" else 1,
        "seconds": seconds,
        "parts": parts,
        "one_core_seconds": one_core,
        "operations_seconds": sum(s for _, s, _ in found),
        "operations": [*found[:LARGEST], others],
        **work,
        "ceilings": {
            "flops": measured(cpu, torch.bfloat16 if precision == "bf16" else torch.float32).flops,
            "bytes": measured(cpu, torch.float32).bytes,
        },
        "crowding": crowding(),
        "started": time.strftime("%Y-%m-%d %H:%M", time.gmtime()),
    }


@contextmanager
def _told_apart() -> Iterator[None]:
    """Inside, machine code counts as an operation."""
    run = Program.__call__

    def told(self: Program, *given: Any) -> None:
        with record_function("machine code"):
            run(self, *given)

    Program.__call__ = told  # type: ignore[method-assign]
    try:
        yield
    finally:
        Program.__call__ = run  # type: ignore[method-assign]


def crowding() -> float:
    """How many times as long small products take on all cores at once as on one: 1 where cores share nothing.

    What a virtual machine calls two cores may be two threads of one, from minute to minute.
    """

    def products(core: int) -> float:
        a, began = torch.ones(256, 256), time.perf_counter()
        for _ in range(200):
            a @ a
        return time.perf_counter() - began

    def longest(workers: int) -> float:
        with intra_op(1):
            return median(max(side_by_side(products, range(workers), workers)) for _ in range(ROUNDS))

    longest(cores())  # starts the threads
    return longest(cores()) / longest(1)


def _rounds(p: Prepared, precision: str, workers: int) -> tuple[Run, Round, dict[str, float]]:
    """(a run, what plays its next round, what a round has to do at the least); the first rounds make the traces."""
    w = p.workload
    made = ours.run(p, ours.federated(p), precision, w.lr, p.first, workers=workers)
    model = sum(v.nbytes for v in p.first.values())
    example = p.x[0].nbytes
    if w.kind == "personal":
        ours.personal(p, made)
        asked = len(p.test)
        flops = 2.0 * asked * sum(v.size for v in p.first.values() if v.ndim == 2)
        least = {"flops": flops, "bytes": float(w.clients * model + asked * example)}
        return made, lambda account: _judged(made, account), least
    draw = ours.Draw(made, w.seed)
    made.here.draw = draw
    rounds = enumerate(torch.from_numpy(p.cohorts), 1)

    def again(account: Account) -> None:
        number, ids = next(rounds)
        with account.of("aggregation"):
            made.federation = play(made.federation, number, ids, timed=account.of).federation

    account = Account(torch.device("cpu"))
    with made.cores():
        for _ in range(w.warmup + 1):
            draw.examples = draw.steps = 0
            again(account)
    work = 2 * model * w.cohort + draw.examples * example  # a client's model comes and goes once; steps are in caches
    return made, again, {"flops": draw.steps * made.probe.flops_per_step, "bytes": float(work)}


def _judged(made: Run, account: Account) -> None:
    with account.of("evaluation"):
        ours.judged(made, "personal")


def _timed(again: Round, warm: int = 1) -> tuple[float, dict[str, float]]:
    """(median seconds of a round, mean seconds of its parts)."""
    told, account = [], Account(torch.device("cpu"))
    for _ in range(warm):
        again(account)
    account.close()
    for _ in range(ROUNDS):
        began = time.perf_counter()
        again(account)
        told.append(time.perf_counter() - began)
    return median(told), {part: seconds / ROUNDS for part, seconds in account.close().items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default=",".join(WORKLOADS), help="workloads, with commas")
    parser.add_argument("--precision", default="fp32,bf16", help="bf16 is for S2")
    parser.add_argument("--home", type=Path, default=Path("runs/speed"), help="data and results")
    asked = parser.parse_args()
    for name in asked.only.split(","):
        for precision in asked.precision.split(","):
            if precision == "bf16" and name not in IN_BF16:
                continue
            prepare(WORKLOADS[name], asked.home / "data" / name)
            found = limits(WORKLOADS[name], precision, asked.home / "data" / name)
            place = asked.home / "limits" / f"{name}-{precision}.json"
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text(json.dumps(found, indent=1) + "\n")
            print(
                f"{name} {precision}: {found['seconds']:.4f} s, operations {found['operations_seconds']:.4f} s",
                flush=True,
            )


if __name__ == "__main__":
    main()
