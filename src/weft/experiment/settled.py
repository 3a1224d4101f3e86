"""A run's clients as they are built: all of them in this process, or some of them in another one."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from weft.core.clients import Group
from weft.core.here import Here
from weft.core.method import Method
from weft.core.task import Examples
from weft.data.federated import FederatedData
from weft.evaluation.protocol import Examiner
from weft.executors import Batched, Plan, loop
from weft.experiment.cohort import able
from weft.experiment.drawing import Drawing
from weft.experiment.settings import RunSettings
from weft.wire import weigh


def settled(
    method: Method, groups: Sequence[Group], examples: Examples, data: FederatedData, settings: RunSettings
) -> Here:
    """The clients of these groups, who take their turns one by one until `planned` says otherwise."""
    pool = np.concatenate([data.train.client(k) for k in able(data)]) if "pooled data" in method.needs else None
    draw = Drawing(data.train, settings, examples.dtype, examples.x.device, pool)
    return Here.begin(method, groups, examples, draw, loop, seed=settings.init_seed, weigh=weigh)


def planned(here: Here, data: FederatedData, settings: RunSettings, plan: Plan) -> None:
    """Let clients be run and judged as planned. States of those with like numbers of test examples lie side by side."""
    if settings.executor != "loop":
        here.execute = Batched(plan.chunk, plan.workers, settings.rounds, settings.compile)
    here.examine = Examiner(data, plan.chunk, plan.workers)
    for group, store in zip(here.groups, here.kept, strict=True):
        store.arrange(torch.from_numpy(data.test.counts)[group.ids].argsort(descending=True, stable=True))
