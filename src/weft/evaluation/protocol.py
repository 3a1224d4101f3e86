"""The protocol: which answers are judged, on whose examples, in which groups of clients.

Every view is asked about every client's validation and test examples. Figures are made for all clients that train, for
those that were in the round and those that were not, and for clients that never train.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from torch import Tensor

from weft.core.clients import Array, Exam, Look, Marks
from weft.core.here import Here
from weft.core.method import Round, shown
from weft.core.round import Federation
from weft.data.federated import FederatedData
from weft.evaluation.answers import answer
from weft.evaluation.metrics import over_clients, per_client


class Judged(NamedTuple):
    """What was found for one view on one split in one group of clients."""

    split: str
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

    def __call__(self, here: Here, exam: Exam) -> Marks:
        """The marks of all clients that are here and have examples of the split."""
        ids = np.sort(np.concatenate([group.ids.numpy() for group in here.groups]))
        split = getattr(self.data, exam.split)
        said = answer(
            here,
            here.method.views[exam.view],
            exam.look,
            [split.client(k) for k in ids],
            ids,
            exam.past,
            exam.number,
            scores=exam.full,
            together=self.together,
            workers=self.workers,
        )
        return Marks(*per_client(said, self.data.source.classes, full=exam.full))


def judge(federation: Federation, data: FederatedData, cohort: Array, number: int, *, full: bool) -> Iterator[Judged]:
    """Judge all views after round `number`, in which `cohort` (int64) took part; `full`: by all metrics."""
    groups, look = grouped(data, cohort), looking(federation, number)
    for split in ("validation", "test"):
        for view in federation.method.views:
            marks = federation.clients.judge(Exam(number, split, view, full, federation.turns, look))
            for group, ids in groups.items():
                there = np.isin(marks.ids, ids)
                if there.any():
                    found = {name: values[there] for name, values in marks.metrics.items()}
                    figures = over_clients(marks.counts[there], found)
                    yield Judged(split, view, group, figures, marks.ids[there], found)


def looking(federation: Federation, number: int) -> Look:
    """What views get as the download after round `number`."""

    def look(ids: Tensor) -> tuple[object, bool]:
        return shown(federation.method, federation.server, Round(number, ids, len(federation.turns), federation.net))

    return look


def grouped(data: FederatedData, cohort: Array) -> dict[str, Array]:
    """The groups that figures are made for; those that would be empty, or the same as all, are left out."""
    able = np.setdiff1d(np.arange(data.clients()), data.unseen)
    groups = {"all": able}
    if len(np.intersect1d(able, cohort)) < len(able):
        groups |= {"participating": np.intersect1d(able, cohort), "absent": np.setdiff1d(able, cohort)}
    return groups | ({"new": data.unseen} if len(data.unseen) else {})
