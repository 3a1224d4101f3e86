"""What a run is doing now: a small file in its folder, which `weft status` reads."""

from __future__ import annotations

import json
import math
import os
import platform
import threading
import time
import warnings
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any

from weft.experiment.folder import RunFolder

FILE = "status.json"
FORMAT = 1
EVERY = 1.0
"""Seconds between two writes. The thread that writes sleeps meanwhile, so that no round waits for a disk."""
COHORT = 50  # ids of a round's clients that are named; the others are counted
NODES = 500  # nodes that are listed; those in trouble first
FAILURES = 20  # of the latest ones


class Status:
    """A run's state, told by the run and its executor; a context, which says how the run ended.

    Times are seconds since 1970 by the clock of the machine that runs, also where they concern other nodes.

    Args:
        folder: where to write; None: nowhere.
        about: what does not change, as plain values: method, data, clients, executor, ...
        rounds: of the whole run.
        local: clients live in this process, which is then the only node.
    """

    def __init__(
        self,
        folder: RunFolder | None,
        about: Mapping[str, Any],
        rounds: int,
        *,
        done: int = 0,
        local: bool = True,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._folder, self._about, self._rounds, self._local, self._clock = folder, dict(about), rounds, local, clock
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._began = self._since = clock()
        self._phase, self._cause = "starting", ""
        self._number = self._done = done
        self._cohort: Sequence[int] = ()
        self._nodes: dict[str, dict[str, Any]] = {}
        self._failures: deque[dict[str, Any]] = deque(maxlen=FAILURES)
        self._figures: dict[str, float | None] = {}
        self._ends: deque[float] = deque([self._began], maxlen=11)
        self._writer = threading.Thread(target=self._keep_writing, name="weft status", daemon=True)
        self._warned = False

    def __enter__(self) -> Status:
        if self._folder:
            self._write()
            self._writer.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        if self._writer.is_alive():
            self._writer.join()
        if error is None:
            self.phase("finished")
        elif isinstance(error, Exception):
            self.phase("failed", " ".join(str(error).split()) or type(error).__name__)
        else:  # Ctrl-C and the like
            self.phase("stopped")
        if self._folder:
            self._write()

    def round(self, number: int, cohort: Sequence[int]) -> None:
        """Round `number` (1, 2, ...) begins, with these clients."""
        with self._lock:
            self._number, self._cohort = number, cohort
        self.phase("training")

    def phase(self, name: str, cause: str = "") -> None:
        """What the run does now: training, evaluating, checkpoint, finished, stopped or failed."""
        with self._lock:
            if name != self._phase:
                self._phase, self._cause, self._since = name, cause, self._clock()

    def done(self, number: int, figures: Mapping[str, float]) -> None:
        """Round `number` has ended; `figures` are the latest ones: split/view/metric and run/cost -> value."""
        with self._lock:
            self._done = number
            self._ends.append(self._clock())
            self._figures = {k: v if math.isfinite(v) else None for k, v in figures.items()}

    def node(self, name: str, state: str, cause: str = "") -> None:
        """Say what a node does or what is wrong with it; see `weft.core.clients.TellNode`."""
        with self._lock:
            self._nodes[name] = {"state": state, "round": self._number, "seen": self._clock(), "cause": cause}
        if cause:
            self.failure(name, cause)

    def failure(self, who: str, cause: str) -> None:
        """Note that something went wrong which the run has survived."""
        with self._lock:
            self._failures.append({"time": self._clock(), "round": self._number, "who": who, "cause": cause})

    def told(self) -> dict[str, Any]:
        """All of it, as plain values."""
        with self._lock:
            now, ends = self._clock(), self._ends
            pace = (ends[-1] - ends[0]) / (len(ends) - 1) if len(ends) > 1 else None
            nodes = dict(self._nodes)
            if self._local:
                nodes["this machine"] = {"state": self._phase, "round": self._number, "seen": now, "cause": self._cause}
            listed = sorted(nodes, key=lambda name: not nodes[name]["cause"])[:NODES]
            return {
                "format": FORMAT,
                **self._about,
                "round": self._number,
                "done": self._done,
                "rounds": self._rounds,
                "phase": self._phase,
                "cause": self._cause,
                "cohort": {"size": len(self._cohort), "first": [int(k) for k in self._cohort[:COHORT]]},
                "nodes": {name: nodes[name] for name in listed},
                "nodes_seen": len(nodes),
                "failures": list(self._failures),
                "figures": self._figures,
                "seconds_per_round": pace,
                "began": self._began,
                "since": self._since,
                "beat": now,
                "pid": os.getpid(),
                "host": platform.node(),
            }

    def _keep_writing(self) -> None:
        while not self._ended.wait(EVERY):
            self._write()

    def _write(self) -> None:
        assert self._folder
        try:
            self._folder.write(FILE, json.dumps(self.told()))
        except OSError as error:  # a full disk ends a run where it matters, at the checkpoint
            if not self._warned:
                warnings.warn(f"{FILE} cannot be written ({error.strerror}): `weft status` is blind", stacklevel=2)
            self._warned = True
