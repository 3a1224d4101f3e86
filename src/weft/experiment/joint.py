"""Which runs of a comparison are one program, and their going there together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from weft.core.lift import Unlike
from weft.core.method import Method, Phase
from weft.core.round import play
from weft.core.task import Turn
from weft.core.turn import Execute
from weft.data.federated import FederatedData
from weft.executors import Batched
from weft.executors.meeting import Clock, Ended, meet
from weft.executors.together import Together, as_one, or_alone
from weft.experiment.cohort import able, cohort, typical
from weft.experiment.drawing import Once
from weft.experiment.result import Result
from weft.experiment.run import RoundReport, Run, Tell
from weft.experiment.settings import RunSettings

Policy = Literal["auto", "always", "never"]

SMALL = 2e5
"""Floating-point operations of a client's step up to which runs are quicker together (`benchmarks/speed/replicas.py`).

Together they save what it costs to start an operation. Models that fill the processor anyway only lose its cache.
"""
_PROGRAM = 8 * 2**20  # bytes of models and batches that one program may hold, if that is more than `chunk` clients
_ROUND = 2**30  # bytes of models that the clients of all runs may hold in a round
_MOST = 64  # runs


class Set(NamedTuple):
    """Methods whose runs are one program, for all seeds."""

    labels: list[str]
    apart: str = ""  # why they are not


def sets(firsts: Mapping[str, Run], seeds: int, policy: Policy) -> list[Set]:
    """Part a comparison, label -> a run of that method, into sets.

    It depends on methods, model and settings only, so that a comparison that goes on is parted as it was.
    """
    if policy == "never":
        return [Set([label], "together = never") for label in firsts]
    found: list[Set] = []
    for label, run in firsts.items():
        apart = ""
        for known in found:
            apart = unlike(firsts[known.labels[0]], run)
            if not apart:
                known.labels.append(label)
                break
        else:
            found.append(Set([label], apart))
    return [part for one in found for part in _judged(one, firsts, seeds, policy)]


def _judged(found: Set, firsts: Mapping[str, Run], seeds: int, policy: Policy) -> list[Set]:
    """The set as it is, or its labels apart from each other, or from everybody."""
    runs = [firsts[label] for label in found.labels]
    if len(runs) * seeds == 1:
        return [found]
    if runs[0].settings.executor != "batched":
        return [Set(found.labels, f"executor = {runs[0].settings.executor} takes one run after the other")]
    if any(run.settings.secure_aggregation for run in runs):
        return [Set([label], "secure aggregation is for each run alone") for label in found.labels]
    if policy == "auto" and runs[0].probe.flops_per_step > SMALL:
        return [Set(found.labels, f"a step of {runs[0].settings.model} is work enough")]
    fixed = tried(runs)
    if fixed:
        return [Set([label], fixed if seeds == 1 else "") for label in found.labels]
    return [Set(found.labels)]


def prepared(methods: Mapping[str, Method], data: FederatedData, settings: Mapping[str, RunSettings]) -> dict[str, Run]:
    """Label -> a run; those on the same network and device share it. Refuses what cannot be run."""
    firsts: dict[str, Run] = {}
    for label, method in methods.items():
        shared = (run for run in firsts.values() if not _setting(run.settings, settings[label], _NETWORK))
        firsts[label] = Run.prepare(method, data, settings[label], like=next(shared, None))
    return firsts


_NETWORK = ("model", "precision", "device")


def _setting(a: RunSettings, b: RunSettings, names: Sequence[str]) -> str:
    """The first of these settings that differs."""
    return next((name for name in names if getattr(a, name) != getattr(b, name)), "")


def unlike(a: Run, b: Run) -> str:
    """Why two runs cannot be one program, whatever the numbers in their methods; "" if they can."""
    other = _setting(a.settings, b.settings, (*_NETWORK, "executor", "chunk"))
    if other:
        return f"{other} differs"
    try:
        as_one([a.federation.method, b.federation.method])
    except Unlike as error:
        what = f"{error} differs" if str(error) else "clients run other code"
        return f"{a.method.name} and {b.method.name}: {what}" if a.method.name != b.method.name else what
    return ""


def tried(runs: Sequence[Run]) -> str:
    """Why numbers in which methods differ must be known before anything is computed; "" if they need not be.

    One step of one client of each run, in every phase, is made together; the runs are not fit to go afterwards.
    """
    numbers = {n.name for turn in as_one([run.federation.method for run in runs]) for n in turn.numbers}
    if not numbers:
        return ""
    together = Together([run.federation.method for run in runs], Batched(workers=1))
    try:
        errors = [end.error for end in meet([partial(_one_step, run) for run in runs], together) if end.error]
    except Exception as error:
        errors = [error]
    return f"{' and '.join(sorted(numbers))} decide what is computed" if errors else ""


def _one_step(run: Run, execute: Execute, clock: Clock) -> None:
    def draw(number: int, ids: Tensor, phases: Mapping[str, Phase], past: Tensor) -> Turn:
        opened = {name: replace(p, epochs=None, steps=1, first=0, last=None) for name, p in phases.items()}
        return run.here.draw(number, ids, opened, past)

    method, clients = run.federation.method, replace(run.here, draw=draw, execute=execute)
    ids = torch.tensor(sorted({typical(method, run.data, run.settings, group) for group in clients.groups}))
    play(replace(run.federation, clients=clients), 1, ids, skip_not_finite=True)


def at_once(run: Run) -> int:
    """How many runs like this one may go together: their clients' models must fit into memory."""
    clients = len(cohort(run.federation.method, able(run.data), run.settings, 1))
    return max(1, min(_MOST, _ROUND // (clients * _bytes(run))))


def go(runs: Sequence[Run], tell: Tell | None = None) -> list[Ended]:
    """Let runs of one set go together; an error ends its own run only."""
    first = runs[0]
    examples, alone = first.here.examples, first.here.execute
    batch = examples.x[:1].numel() * first.settings.batch_size * examples.dtype.itemsize
    chunk = max(first.engine.plan.chunk, _PROGRAM // (_bytes(first) + batch))
    drawn = Once()
    methods = [run.federation.method for run in runs]
    together = Together(
        methods, Batched(chunk, first.engine.plan.workers, first.settings.rounds, first.settings.compile)
    )
    latest = 0

    def told(report: RoundReport) -> None:
        """The first report of a round stands for those of all runs."""
        nonlocal latest
        if tell and report.number > latest:
            latest = report.number
            tell(replace(report, clients=report.clients * len(runs), seconds=report.seconds * len(runs)))

    def one(run: Run, execute: Execute, clock: Clock) -> Result:
        run.clock, run.here = clock, replace(run.here, draw=drawn.by(run.here.draw, run.settings), execute=execute)
        run.federation = replace(run.federation, clients=run.here)
        return run.go(told)

    return meet([partial(one, run) for run in runs], or_alone(together, alone))


def _bytes(run: Run) -> int:
    """Of one client's model."""
    return sum(x.numel() * x.element_size() for x in run.federation.net.init(0).values())


def line(parted: Sequence[Set], seeds: int) -> str:
    """The decision in a line."""
    joined = [s for s in parted if not s.apart and len(s.labels) * seeds > 1]
    alone = [s for s in parted if s not in joined]
    words = []
    if joined:
        count, programs = sum(len(s.labels) for s in joined) * seeds, len(joined)
        words.append(f"{count} runs as {'one program' if programs == 1 else f'{programs} programs'}")
    if alone:
        count = sum(len(s.labels) for s in alone) * seeds
        why = "; ".join(dict.fromkeys(s.apart for s in alone if s.apart))
        words.append(f"{count} {'run' if count == 1 else 'runs one after the other'}{why and f' ({why})'}")
    return ", ".join(words)
