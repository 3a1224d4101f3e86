"""The protocol: which answers are judged, on whose examples, in which groups of clients.

Every view is asked about every client's validation and test examples, and about its test streams. Figures are made for
all clients that train, for those that were in the round and those that were not, and for clients that never train.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from weft.core.clients import Array, Exam, Look, Marks, joined
from weft.core.here import Here
from weft.core.method import Round, shown
from weft.core.round import Federation
from weft.data.federated import FederatedData, Stream
from weft.evaluation.answers import Answers, answer
from weft.evaluation.metrics import over_clients, per_client

JUDGED = ("validation", "test")
ASKED = 2**15
"""Examples that are judged before their answers become figures."""


class Judged(NamedTuple):
    """What was found for one view on one split in one group of clients."""

    split: str  # validation, test, or the name of a stream, with /own and /others for its halves
    view: str
    group: str  # all, participating, absent or new
    figures: dict[str, float]  # over clients
    clients: Array  # int64 [k]
    metrics: dict[str, Array]  # of each client, [k]


@dataclass(frozen=True)
class Examiner:
    """Judges clients that are here on their own examples."""

    data: FederatedData
    together: int = 64  # clients judged as one program
    workers: int = 1  # programs side by side

    def __call__(self, here: Here, exam: Exam) -> dict[str, Marks]:
        """The marks of all clients that are here and have examples of the split, or of a part of it."""
        everybody = torch.cat([group.ids for group in here.groups]).sort().values
        ids = (everybody if exam.ids is None else exam.ids).numpy()
        stream = asked(self.data)[exam.split]
        found: dict[str, list[Marks]] = {}
        for some in _shares(ids, stream.rows.counts[ids], self.data.test.counts[ids]):
            said = answer(
                here,
                here.method.views[exam.view],
                exam.look,
                [stream.rows.client(k) for k in some],
                some,
                exam.past,
                exam.number,
                scores=exam.full,
                together=self.together,
                workers=self.workers,
            )
            for name, chosen in parts(exam.split, said, stream, some):
                marks = Marks(*per_client(chosen, self.data.source.classes, full=exam.full))
                found.setdefault(name, []).append(marks)
        return {name: joined(each) for name, each in found.items()}


def _shares(ids: Array, counts: Array, size: Array) -> list[Array]:
    """Clients in parts of about `ASKED` examples, so that what was said is never in memory for a large population.

    Those of like `size` are in the same part, as their states lie side by side.
    """
    order = np.argsort(-size, kind="stable")
    ends = np.flatnonzero(np.diff(np.maximum(np.cumsum(counts[order]) - 1, 0) // ASKED)) + 1
    return [np.sort(part) for part in np.split(ids[order], ends)]


def asked(data: FederatedData) -> dict[str, Stream]:
    """All that clients are asked, by name: the two splits that are judged, and the test streams."""
    own = {split: getattr(data, split) for split in JUDGED}
    return {name: Stream(rows, np.zeros(len(rows.rows), bool)) for name, rows in own.items()} | dict(data.streams)


def parts(split: str, said: Answers, stream: Stream, ids: Array) -> Iterator[tuple[str, Answers]]:
    """What these clients (int64, ascending) said, and apart from each other what on own and on others' examples."""
    yield split, said
    if stream.foreign.any() and not stream.foreign.all():
        owner = np.repeat(np.arange(stream.rows.clients), stream.rows.counts)
        foreign = stream.foreign[np.isin(owner, ids)]
        yield f"{split}/own", said.take(~foreign)
        yield f"{split}/others", said.take(foreign)


def judge(federation: Federation, data: FederatedData, cohort: Array, number: int, *, full: bool) -> Iterator[Judged]:
    """Judge all views after round `number`, in which `cohort` (int64) took part; `full`: by all metrics."""
    groups, look, views = grouped(data, cohort), looking(federation, number), federation.method.views
    exams = [Exam(number, split, view, full, federation.turns, look) for split in asked(data) for view in views]
    for exam in exams:
        for part, marks in federation.clients.judge(exam).items():
            for group, members in groups.items():
                there = members[marks.ids]
                if there.any():
                    found = {name: values[there] for name, values in marks.metrics.items()}
                    figures = over_clients(marks.counts[there], found)
                    yield Judged(part, exam.view, group, figures, marks.ids[there], found)


def looking(federation: Federation, number: int) -> Look:
    """What views get as the download after round `number`."""

    def look(ids: Tensor) -> tuple[object, bool]:
        return shown(federation.method, federation.server, Round(number, ids, len(federation.turns), federation.net))

    return look


def grouped(data: FederatedData, cohort: Array) -> dict[str, Array]:
    """The groups that figures are made for, bool [population]; those that would be empty, or as all, are left out."""
    new, took_part = np.zeros(data.clients(), bool), np.zeros(data.clients(), bool)
    new[data.unseen], took_part[cohort] = True, True
    groups = {"all": ~new}
    if (absent := ~new & ~took_part).any():
        groups |= {"participating": ~new & took_part, "absent": absent}
    return groups | ({"new": new} if len(data.unseen) else {})
