"""What bounds the quickest round of each workload: python benchmarks/speed/floors.py [--home runs/speed] [--only S1,S3]

For each workload one JSON file in HOME/floors: the floating-point operations of a round, the core-seconds that its
matrix products and convolutions take as torch runs them, and those of all other operations, by torch's profiler in one
thread; and the machine's ceilings. `page.py` puts them beside the targets.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path
from statistics import median

import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

sys.path[:0] = [str(Path(__file__).resolve().parent)]

from peers import weft as peer
from workloads import WORKLOADS, Prepared, load

from weft.core.turn import Mine
from weft.executors import Batched
from weft.experiment.account import measured

PRODUCTS = ("mm", "bmm", "addmm", "baddbmm", "convolution", "rnn_layer", "linear", "conv2d")


def round_once(p: Prepared) -> tuple[float, float, float]:
    """(operations of a round; core-seconds in products; in all other operations)."""
    data, w = peer.federated(p), p.workload
    made = peer.run(p, data, "fp32", w.lr, p.first)
    if w.kind == "personal":
        everyone = torch.arange(w.clients)
        models = {k: torch.from_numpy(v) for k, v in peer.personal_models(p).items()}
        made.here.kept[0].scatter(everyone, Mine(models, {}))
        made.federation = replace(made.federation, turns=torch.ones_like(everyone))
        made.here.examine = replace(made.here.examine, workers=1)
        with FlopCounterMode(display=False) as counter:
            made.federation.net.apply(made.federation.net.init(0), made.here.examples.look(torch.arange(10)))
        operations = counter.get_total_flops() / 10 * len(p.test)

        def play() -> None:
            peer.judged(made, "personal")
    else:
        made.here.execute = Batched(made.plan.chunk, 1, made.settings.rounds)
        cohorts = p.cohorts[: w.warmup + w.rounds]
        times = 12 if w.kind == "sweep" else 1
        _, steps = zip(*(p.work(ids) for ids in cohorts), strict=True)
        operations = made.probe.flops_per_step * median(steps)

        def play() -> None:
            peer.rounds(made, p.cohorts[:times], w.seed, 0)

    torch.set_num_threads(1)
    play()
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        play()
    inside = other = 0.0
    for event in seen.key_averages():
        if not event.key.startswith("aten::"):
            continue
        if any(name in event.key for name in PRODUCTS):
            inside += event.self_cpu_time_total / 1e6
        else:
            other += event.self_cpu_time_total / 1e6
    return operations, inside, other


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default=",".join(WORKLOADS))
    parser.add_argument("--home", type=Path, default=Path("runs/speed"))
    asked = parser.parse_args()
    place = asked.home / "floors"
    place.mkdir(parents=True, exist_ok=True)
    for name in asked.only.split(","):
        best = measured(torch.device("cpu"), torch.float32)
        operations, inside, other = round_once(load(WORKLOADS[name], (asked.home / "data" / name).resolve()))
        found = {
            "flops": operations, "products": inside, "other": other, "ceiling_flops": best.flops,
            "ceiling_bytes": best.bytes,
        }  # fmt: skip
        (place / f"{name}.json").write_text(json.dumps(found, indent=1) + "\n")
        print(name, {k: f"{v:.4g}" for k, v in found.items()}, flush=True)


if __name__ == "__main__":
    main()
