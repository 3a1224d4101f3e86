"""The toy federation at the actors of a cluster: what other processes import."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tests.laws.toys import CLASSES, CLIENTS, EXAMPLES, ROWS, cohort, draw, groups, make
from weft.core import Method
from weft.core.clients import Clients, Exam, Marks
from weft.core.here import Here
from weft.core.round import Federation, begin, play
from weft.data.federated import Rows, Stream
from weft.evaluation.protocol import Examiner, looking
from weft.executors import Batched
from weft.local.buffers import with_buffers

ONE = torch.arange(CLIENTS)
JUDGED = Rows.of([np.roll(ROWS[(k + 1) % CLIENTS], k)[: 2 + k] for k in range(CLIENTS)])
MIXED = Stream(JUDGED, np.arange(len(JUDGED.rows)) % 3 == 2)  # client 0 has none of others' examples
DATA: Any = SimpleNamespace(
    validation=JUDGED, test=JUDGED, streams={"mixture": MIXED}, source=SimpleNamespace(classes=CLASSES)
)


def method_of(name: str) -> Method:
    """A method, or with a plus one whose running statistics are recalibrated, which takes a second exchange."""
    return with_buffers(make(name[:-1]), "recalibrate") if name.endswith("+") else make(name)


def share(ids: Tensor, where: torch.device, name: str) -> Here:
    """Some of the clients."""
    own = [g._replace(ids=g.ids[torch.isin(g.ids, ids)]) for g in groups(name.rstrip("+"))]
    return Here.begin(method_of(name), own, EXAMPLES, draw, Batched(), seed=1, examine=Examiner(DATA, 2))


def dying(ids: Tensor, where: torch.device, name: str, flags: str, victim: int, moments: Sequence[str]) -> Here:
    """The same; the process that has the client `victim` is killed once at each of these moments.

    Moments: "turn N" is before the Nth drawing of round 2, "keep" is when half of the round's state is written, and
    "judge" is when a view is judged.
    """
    here = share(ids, where, name)
    if victim not in ids:
        return here
    turns = 0

    def die(moment: str) -> None:
        flag = Path(flags) / moment
        if moment in moments and not flag.exists():
            flag.touch()
            os.kill(os.getpid(), signal.SIGKILL)

    def drawn(number: int, *rest: Any) -> Any:
        nonlocal turns
        turns += number == 2
        die(f"turn {turns}" if number == 2 else "")
        return draw(number, *rest)

    class Fragile:
        def __init__(self, store: Any) -> None:
            self.store = store

        def __getattr__(self, name: str) -> Any:
            return getattr(self.store, name)

        def scatter(self, members: Tensor, states: Any) -> None:
            self.store.scatter(members, states)
            die("keep" if turns else "")

    def examined(there: Here, exam: Exam) -> dict[str, Marks]:
        die("judge")
        return Examiner(DATA, 2)(there, exam)

    return replace(here, draw=drawn, examine=examined, kept=tuple(map(Fragile, here.kept)))  # type: ignore[arg-type]


def go(clients: Clients, name: str, rounds: int = 3, size: int = 4) -> tuple[Federation, dict[str, Marks]]:
    """(the federation after some rounds, how all clients do under every view, on all they are asked)."""
    federation = begin(method_of(name), clients, CLIENTS, seed=1)
    for number in range(1, rounds + 1):
        federation = play(federation, number, cohort(number, size)).federation
    look = looking(federation, rounds)
    marks = {
        f"{view} on {part}": found
        for view in federation.method.views
        for split in ("test", "mixture")
        for part, found in clients.judge(Exam(rounds, split, view, True, federation.turns, look)).items()
    }
    return federation, marks
