"""Where the time of a run goes, and how far from the machine's limits it is."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch

from weft.executors import cores

PARTS = ("data", "local", "aggregation", "evaluation", "checkpoint", "idle")
"""data: drawing batches. local: clients' turns. aggregation: downloads, checks, reductions and the server's step.
checkpoint: metrics, summary and checkpoint. idle: what is left, such as trackers and progress lines."""


class Account:
    """Seconds by part; each moment counts for the innermost part that is open."""

    def __init__(
        self, device: torch.device, exact: bool = False, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        """`exact`: wait for the device at each boundary, so that its time counts where it was asked for."""
        self._device, self._exact, self._clock = device, exact, clock
        self._open: list[str] = ["idle"]
        self._since = clock()
        self._seconds = dict.fromkeys(PARTS, 0.0)

    @contextmanager
    def of(self, part: str) -> Iterator[None]:
        """What runs inside counts for `part`."""
        self._settle()
        self._open.append(part)
        try:
            yield
        finally:
            self._settle()
            self._open.pop()

    def close(self) -> dict[str, float]:
        """Seconds by part since the last call."""
        self._settle()
        told, self._seconds = self._seconds, dict.fromkeys(PARTS, 0.0)
        return told

    def _settle(self) -> None:
        if self._exact and self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        now = self._clock()
        self._seconds[self._open[-1]] += now - self._since
        self._since = now


class Ceilings(NamedTuple):
    """What the machine can do at best."""

    flops: float  # of a large matrix product, per second
    bytes: float  # read and written by a large copy, per second


def measured(device: torch.device, dtype: torch.dtype, seconds: float = 2.0) -> Ceilings:
    """Measure the ceilings with all cores of a CPU, or on a GPU, in about so many seconds."""
    threads = torch.get_num_threads()
    torch.set_num_threads(cores())
    try:
        a = torch.ones(2048, 2048, dtype=dtype, device=device)
        b = torch.ones(2**26 // a.element_size(), dtype=dtype, device=device)
        c = torch.empty_like(b)
        product = _best(lambda: torch.mm(a, a), device, seconds / 2)
        copy = _best(lambda: c.copy_(b), device, seconds / 2)
    finally:
        torch.set_num_threads(threads)
    return Ceilings(2 * len(a) ** 3 / product, 2 * b.numel() * b.element_size() / copy)


def _best(work: Callable[[], Any], device: torch.device, seconds: float) -> float:
    """Least seconds of a call, over so many seconds."""
    end, best = time.perf_counter() + seconds, float("inf")
    while time.perf_counter() < end:
        began = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - began)
    return best


class Work(NamedTuple):
    """What a run did in its clients' turns."""

    steps: float
    flops: float
    bytes: float  # that had to move at the least
    rows: float  # examples that counted
    rows_run: float  # examples that were computed, padding included


def lines(seconds: Mapping[str, float], work: Work, best: Ceilings, plan: str) -> list[str]:
    """The account as text."""
    whole, local = sum(seconds.values()) or 1.0, seconds["local"] or float("inf")
    told = [f"plan: {plan}"]
    told += [f"{part:<12}{seconds[part]:9.2f} s {seconds[part] / whole:6.1%}" for part in PARTS]
    padding = 1 - work.rows / work.rows_run if work.rows_run else 0.0
    told.append(
        f"in turns: {work.steps / local:,.0f} client steps/s, {padding:.1%} of the computed examples are padding"
    )
    told.append(
        f"{work.flops / local / 1e9:.1f} GFLOP/s, {work.flops / local / best.flops:.0%} of this machine's "
        f"{best.flops / 1e9:.0f} (a large matrix product)"
    )
    told.append(
        f"{work.bytes / local / 1e9:.1f} GB/s at the least, {work.bytes / local / best.bytes:.0%} of this machine's "
        f"{best.bytes / 1e9:.0f} (a large copy)"
    )
    return told
