"""Who takes part in a round."""

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
    return np.setdiff1d(np.arange(data.clients()), data.unseen)


def cohort(method: Method, data: FederatedData, settings: RunSettings, number: int) -> Tensor:
    """The clients of a round, uniformly without replacement, ascending."""
    if "pooled data" in method.needs:
        return torch.zeros(1, dtype=torch.int64)
    there, share = able(data), settings.cohort
    size = max(1, round(share * len(there))) if share <= 1 else int(share)
    chosen = stream(settings.seed, "cohort", number).choice(there, size, replace=False)
    return torch.from_numpy(np.sort(chosen))


def typical(method: Method, data: FederatedData, settings: RunSettings, group: Group) -> int:
    """A client of a group: the first of round 1, if there is one, that trains, else any."""
    first = cohort(method, data, settings, 1)
    for ids in (first, torch.from_numpy(np.setdiff1d(group.ids, data.unseen))):
        there = ids[torch.isin(ids, group.ids)]
        if len(there):
            return int(there[0])
    return int(first[0])
