"""Which clients are in a round."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from weft.core.clients import Group
from weft.core.method import Method
from weft.core.stream import stream
from weft.data.federated import FederatedData, Indices
from weft.experiment.settings import RunSettings


def able(data: FederatedData) -> Indices:
    """The clients that train, ascending."""
    trains = np.ones(data.clients(), bool)
    trains[data.unseen] = False
    return np.flatnonzero(trains)


def expected(there: int, settings: RunSettings) -> float:
    """How many of the clients that are there a round has; with Poisson sampling on average, maybe no whole number."""
    share = settings.cohort
    if settings.sampling == "poisson":
        return share * there if share <= 1 else share
    return max(1, round(share * there)) if share <= 1 else min(int(share), there)


def cohort(method: Method, there: Indices, settings: RunSettings, number: int) -> Tensor:
    """The clients of a round, of those that are there, ascending: so many without replacement, or each with one chance.

    A round of nobody is a round of one, since there is nothing else to play.
    """
    if "pooled data" in method.needs:
        return torch.zeros(1, dtype=torch.int64)
    size = expected(len(there), settings)
    rng = stream(settings.seed, "cohort", number)
    if settings.sampling == "poisson":
        chosen = there[rng.random(len(there)) < size / len(there)]
        chosen = chosen if len(chosen) else rng.choice(there, 1)
    else:
        chosen = rng.choice(there, int(size), replace=False)
    return torch.from_numpy(np.sort(chosen))


def typical(method: Method, data: FederatedData, settings: RunSettings, group: Group) -> int:
    """A client of a group: the first of round 1, if there is one, that trains, else any."""
    first = cohort(method, able(data), settings, 1)
    for ids in (first, torch.from_numpy(np.setdiff1d(group.ids, data.unseen))):
        there = ids[torch.isin(ids, group.ids)]
        if len(there):
            return int(there[0])
    return int(first[0])
