"""The protocol: which answers are judged, on whose examples, in which groups of clients.

Every view is asked about every client's validation and test examples, and about its test streams. Figures are made for
all clients that train, for those that were in the round and those that were not, and for clients that never train.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from weft.core.method import View
from weft.core.round import Draw, Federation
from weft.core.task import Examples
from weft.data.federated import FederatedData, Stream
from weft.evaluation.answers import Answers, answer
from weft.evaluation.metrics import over_clients, per_client

Array = np.ndarray[Any, np.dtype[Any]]
JUDGED = ("validation", "test")


class Judged(NamedTuple):
    """What was found for one view on one split in one group of clients."""

    split: str  # validation, test, or the name of a stream, with /own and /others for its halves
    view: str
    group: str  # all, participating, absent or new
    figures: dict[str, float]  # over clients
    clients: Array  # int64 [k]
    metrics: dict[str, Array]  # of each client, [k]


def judge(
    federation: Federation,
    views: Mapping[str, View],
    examples: Examples,
    data: FederatedData,
    cohort: Array,
    number: int,
    draw: Draw,
    *,
    full: bool,
    together: int,
    workers: int = 1,
) -> Iterator[Judged]:
    """Judge all views after round `number`, in which `cohort` took part.

    Args:
        federation: after the round.
        views: name -> view.
        examples: everybody's examples.
        data: who has which.
        cohort: int64, the clients of the round.
        number: the round.
        draw: draws clients' own training data, for views that adapt.
        full: all metrics, not only accuracy and loss.
        together: clients judged as one program.
        workers: programs side by side.
    """
    everyone = np.arange(data.clients())
    groups = grouped(data, cohort)
    asked = {split: Stream(rows := getattr(data, split), np.zeros(len(rows.rows), bool)) for split in JUDGED}
    for split, stream in {**asked, **data.streams}.items():
        rows = list(stream.rows.each())
        for name, view in views.items():
            said = answer(
                federation,
                view,
                examples,
                rows,
                everyone,
                draw,
                number,
                scores=full,
                together=together,
                workers=workers,
            )
            for part, chosen in parts(split, said, stream.foreign):
                for group, ids in groups.items():
                    clients, counts, found = per_client(chosen.of(ids), data.source.classes, full=full)
                    if len(clients):
                        yield Judged(part, name, group, over_clients(counts, found), clients, found)


def parts(split: str, said: Answers, foreign: Array) -> Iterator[tuple[str, Answers]]:
    """The answers, and apart from each other those on own and on others' examples, if there are both."""
    yield split, said
    if foreign.any() and not foreign.all():
        yield f"{split}/own", said.take(~foreign)
        yield f"{split}/others", said.take(foreign)


def grouped(data: FederatedData, cohort: Array) -> dict[str, Array]:
    """The groups that figures are made for; those that would be empty, or the same as all, are left out."""
    able = np.setdiff1d(np.arange(data.clients()), data.unseen)
    groups = {"all": able}
    if len(np.intersect1d(able, cohort)) < len(able):
        groups |= {"participating": np.intersect1d(able, cohort), "absent": np.setdiff1d(able, cohort)}
    return groups | ({"new": data.unseen} if len(data.unseen) else {})
