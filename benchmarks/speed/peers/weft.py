"""Weft, as it is installed and with its own defaults for threads and for how cohorts are run.

`Run.prepare` builds the run, then the rounds are played with the workload's cohorts instead of Weft's own. Everything
that ``weft.run`` would do in a round is inside the timed part: the drawing of batches, the executor, the checks of
uploads, the server's step, and the count of bytes.
"""

# ruff: noqa: E402 (the path is set before the imports, so that this folder hides no package)
from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np
import torch
from peers.networks import CNN2
from protocol import arguments, peak_memory, versions, write
from torch import Tensor
from workloads import Prepared, grid, load, personal_models

from weft.core import Phase
from weft.core.clients import Exam
from weft.core.here import Here
from weft.core.registry import find
from weft.core.round import begin, play
from weft.core.task import Turn
from weft.core.turn import Mine
from weft.data.federated import FederatedData, Rows
from weft.data.manifest import manifest
from weft.data.source import Source
from weft.evaluation.metrics import over_clients
from weft.evaluation.protocol import looking
from weft.experiment import joint
from weft.experiment.plugins import load_methods
from weft.experiment.run import Run
from weft.experiment.settings import RunSettings, from_mapping
from weft.experiment.settled import planned
from weft.local import SGD
from weft.local.batches import draw_turns
from weft.wire import weigh

NETWORKS = {"cnn2": CNN2}
"""Networks that are not Weft's own; the others are, by name."""

Told = list[tuple[float, int, int]]
"""Seconds, examples and steps of every timed round."""

Found = tuple[Told, float, str]
"""With the final accuracy, and how Weft says that it ran."""


def federated(p: Prepared) -> FederatedData:
    """The workload's examples and rows as Weft's."""
    test = np.isin(np.arange(len(p.x)), p.test)
    kind = "characters" if p.vocabulary else "image"
    x = p.x.astype(np.int32) if p.vocabulary else p.x
    scaling = (p.shift.astype(np.float32), p.scale.astype(np.float32))
    source = Source(p.workload.data, kind, x, p.y, p.classes, test, None, None, *scaling, vocabulary=p.vocabulary)
    none = Rows.of([p.rows[:0]] * p.workload.clients)
    splits = {"train": Rows(p.rows, p.offset), "validation": none, "test": Rows(p.test, p.test_offset)}
    note = manifest(source, splits, np.zeros(0, np.int64), {"protocol": "official"})
    return FederatedData(source, **splits, protocol="official", manifest=note)


def run(
    p: Prepared, data: FederatedData, precision: str, lr: float, first: Mapping[str, np.ndarray], **how: Any
) -> Run:
    """A run that is ready to go, from these first weights; `how`: its workers, its device, its executor."""
    w, model = p.workload, None
    asked = {"epochs": w.epochs, "batch_size": w.batch_size, "cohort": w.cohort, "seed": w.seed, "precision": precision}
    asked |= {"device": "cpu", **how}
    if w.model in NETWORKS:  # a module that other peers train too
        model = lambda: NETWORKS[w.model](p.x.shape[1:], p.classes)  # noqa: E731
    else:
        asked["model"] = w.model
    load_methods()
    method = find(w.method).make(SGD(lr), **w.options)
    made = Run.prepare(method, data, from_mapping(RunSettings, asked), model)
    start = {k: torch.from_numpy(v).to(made.device) for k, v in first.items()}
    here, method = made.here, made.federation.method
    made.here = Here.begin(method, here.groups, here.examples, here.draw, here.execute, first=start, weigh=weigh)
    planned(made.here, data, made.settings, made.engine.plan)
    made.federation = begin(method, made.here, data.clients(), first=start)
    return made


@dataclass
class Draw:
    """Draws batches as `Run` does, and counts them."""

    run: Run
    seed: int
    examples: int = 0
    steps: int = 0

    def __call__(self, number: int, ids: Tensor, phases: Mapping[str, Phase], past: Tensor) -> Turn:
        s, names = self.run.settings, ids.tolist()
        turn = draw_turns(
            [self.run.data.train.client(k) for k in names], names, phases, past.tolist(), seed=self.seed,
            number=number, epochs=s.epochs, batch_size=s.batch_size, dtype=self.run.here.examples.dtype,
            device=self.run.device,
        )  # fmt: skip
        for drawn in turn.steps.values():
            self.examples += int((drawn >= 0).sum())
            self.steps += int((drawn >= 0).any(2).sum())
        return turn


def rounds(made: Run, cohorts: np.ndarray, seed: int, evaluate_every: int) -> Told:
    """Play these rounds, and leave the run after the last one."""
    told = []
    for number, ids in enumerate(torch.from_numpy(cohorts), 1):
        draw = Draw(made, seed)
        made.here.draw = draw
        began = time.perf_counter()
        made.federation = play(made.federation, number, ids).federation
        told.append((time.perf_counter() - began, draw.examples, draw.steps))
        if evaluate_every and number % evaluate_every == 0:
            accuracy(made)
    return told


def judged(made: Run, view: str) -> dict[str, np.ndarray]:
    """Metrics of every client on its test rows."""
    made.here.draw = Draw(made, made.settings.seed)
    exam = Exam(0, "test", view, False, made.federation.turns, looking(made.federation, 0))
    marks = made.here.judge(exam)["test"]
    return {"clients": marks.ids, "counts": marks.counts, **marks.metrics}


def accuracy(made: Run) -> float:
    """Of the shared model on all test rows, or where there are personal models, the mean over clients."""
    view = "personal" if "personal" in made.federation.method.views else "global"
    found = judged(made, view)
    figures = over_clients(found["counts"], {"accuracy": found["accuracy"]})
    return figures["accuracy.mean" if view == "personal" else "accuracy"]


def training(p: Prepared, timed: int, warmup: int, precision: str) -> Found:
    """The rounds of one run."""
    made = run(p, federated(p), precision, p.workload.lr, p.first)
    with made.cores():
        told = rounds(made, p.cohorts[: warmup + timed], p.workload.seed, p.workload.evaluate_every)
    return told[warmup:], accuracy(made), str(made.engine.plan)


def personal(p: Prepared, made: Run) -> None:
    """Give every client its personal model, as if it had had a turn."""
    everyone = torch.arange(p.workload.clients)
    models = {k: torch.from_numpy(v) for k, v in personal_models(p).items()}
    made.here.kept[0].scatter(everyone, Mine(models, {}))
    made.federation = replace(made.federation, turns=torch.ones_like(everyone))


def evaluation(p: Prepared, timed: int, warmup: int, precision: str) -> Found:
    """S7: all personal models on their clients' test rows, as Ditto's personal view."""
    made = run(p, federated(p), precision, p.workload.lr, p.first)
    personal(p, made)
    told, found = [], {}
    for _ in range(warmup + timed):
        began = time.perf_counter()
        with made.cores():
            found = judged(made, "personal")
        told.append((time.perf_counter() - began, int(found["counts"].sum()), len(found["clients"])))
    return told[warmup:], float(found["accuracy"].mean()), f"at most {made.engine.plan.chunk} models judged together"


def apart(runs: Sequence[Run]) -> None:
    """One run after the other."""
    for made in runs:
        made.go()


def together(runs: Sequence[Run]) -> None:
    """All runs as one program."""
    for end in joint.go(runs):
        if end.error:
            raise end.error


SWEEPS: dict[str, Callable[[Sequence[Run]], None]] = {"one-by-one": apart, "one-program": together}
"""Ways to play a grid of runs."""


def swept(way: str, p: Prepared, timed: int, warmup: int, precision: str) -> Found:
    """S8: the grid, again and again; a second is the mean of a round of all runs, with Weft's own cohorts."""
    data, w, rounds = federated(p), p.workload, timed + warmup
    load_methods()
    base = RunSettings(
        rounds=rounds, cohort=w.cohort, batch_size=w.batch_size, epochs=w.epochs, model=w.model, device="cpu",
        precision=precision, evaluate_every=rounds,
    )  # fmt: skip
    like = Run.prepare(find(w.method).make(), data, base)
    judging = Run._evaluate
    Run._evaluate = lambda *_: {}  # type: ignore[method-assign]
    told: Told = []
    for _ in range(1 + timed):  # the first time makes the traces
        runs = [
            Run.prepare(
                find(w.method).make(SGD(lr), **w.options), data, replace(base, seed=seed, init_seed=seed), like=like
            )
            for lr, seed in grid(w)
        ]
        began = time.perf_counter()
        SWEEPS[way](runs)
        steps = round(sum(made.totals["steps"] for made in runs) / rounds)
        told.append(((time.perf_counter() - began) / rounds, steps * w.batch_size, steps))
    Run._evaluate = judging  # type: ignore[method-assign]
    right = float(np.mean([accuracy(made) for made in runs]))
    return told[1:], right, f"{way.replace('-', ' ')}; {rounds} rounds of every run; {like.engine.plan}"


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--sweep", choices=list(SWEEPS), default="one-program", help="how a grid of runs is run")
    asked = parser.parse_args()
    p = load(asked.workload, asked.folder)
    kinds = {"train": training, "personal": evaluation, "sweep": partial(swept, asked.sweep)}
    told, right, plan = kinds[p.workload.kind](p, asked.rounds, asked.warmup, asked.precision)
    seconds, examples, steps = zip(*told, strict=True)
    write(
        asked.out, peer="weft", workload=asked.workload, precision=asked.precision, seconds=seconds, examples=examples,
        steps=steps, accuracy=right, memory_mib=peak_memory(), versions=versions("weft", "torch", "numpy"),
        notes=f"all settings are Weft's defaults; {plan}",
    )  # fmt: skip


if __name__ == "__main__":
    main()
