"""FedCross: as many models as clients in a round travel, and each is mixed slightly with another one.

Paper
    Hu, Zhou, Yue, Ling, Huang, Li, Liu, Lian, Chen: "FedCross: Towards Accurate Federated Learning via Multi-Model
    Cross-Aggregation", ICDE 2024, arXiv 2210.08285.
What it changes
    There is no common model to train from: K models visit a random client each, and only they are sent. Their mean is
    the model that answers.
Algorithm
    v_i: model i after local SGD at the client that it was sent to. Partner co(i): the model of least (lowest) or
    greatest (highest) cosine similarity to v_i, or (i + (r mod (K - 1)) + 1) mod K (in-order), r = 0, 1, ... the round.
    w_i <- alpha v_i + (1 - alpha) v_co(i), all at once. w = 1/K sum_i w_i.
Defaults
    alpha = 0.99, lowest, warmup = 0, as in the paper; eta = 0.05 (theirs: 0.01 with momentum 0.5, not confirmed).
Deviations
    K is the size of the first round; should a round be larger, models join as the mean, and should it be smaller, or a
    client's answer be lost, the others stay where they are, and are partners all the same. Similarity is the cosine of
    all weights at once; public code sums it over growing parts of the list. Running statistics mix like weights. The
    paper's faster starts are left out but one: in the first `warmup` rounds all models become the mean. The mean is
    what the views get, and is not sent.
Neutral
    None; while warming up it is FedAvg with equal weights.
Promise
    It does not reach the optimum of quadratics with different minimisers.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from weft.core import Channel, Method, Model, Net, Reply, Round, Task, Tree, method
from weft.core.errors import SettingError
from weft.core.stream import stream
from weft.core.tree import delta, each, mix
from weft.local import SGD, Optimiser, descend
from weft.methods.fedavg import fedavg
from weft.server import keep_all


class Crossed(NamedTuple):
    """Server state: the mean, and the models [K, ...]."""

    model: Tree
    models: Tree


class Visit(NamedTuple):
    """Download and upload: one of the models, or its change, and which one it is."""

    model: Tree
    place: Tree


def grown(state: Crossed, size: int) -> Tree:
    """The models; where there are fewer than `size`, the mean joins them as often as is wanted."""
    more = max(0, size - len(next(iter(state.models.values()))))
    return each(lambda s, w: torch.cat([s, w.expand(more, *w.shape)]), state.models, state.model)


def partners(weights: Tree, choose: str, turn: int) -> Tensor:
    """For every model [K, ...] the place of the other one that it is mixed with."""
    flat = torch.cat([x.reshape(len(x), -1) for x in weights.values()], 1)
    count = len(flat)
    if choose == "in-order":
        return (torch.arange(count, device=flat.device) + turn % (count - 1) + 1) % count
    unit = F.normalize(flat, dim=1)
    alike = unit @ unit.T if choose == "highest" else -(unit @ unit.T)
    return alike.fill_diagonal_(-torch.inf).argmax(1)


@method(
    "FedCross",
    "optimisation",
    reaches_optimum=False,
    off={"alpha": 1.0},
    exempt={
        "names": "which model visits which client is drawn over places in the round",
        "lost": "which models are sent is drawn for those who are asked",
    },
)
def fedcross(
    opt: Optimiser = SGD(0.05),
    alpha: float = 0.99,
    choose: Literal["lowest", "in-order", "highest"] = "lowest",
    warmup: int = 0,
) -> Method:
    """FedCross. opt: the local optimiser; alpha: a model's own share; choose: its partner; warmup: rounds of FedAvg."""
    if not 0.5 <= alpha <= 1 or choose not in ("lowest", "in-order", "highest"):
        raise SettingError(
            f"alpha = {alpha}, choose = {choose!r} of fedcross: use 0.5 to 1, and lowest, in-order or highest"
        )

    def send(state: Crossed, r: Round) -> Visit:
        models = grown(state, len(r.ids))
        count = len(next(iter(models.values())))
        drawn = stream(r.seed, "fedcross", r.number).permutation(count)[: len(r.ids)]
        place = torch.from_numpy(drawn).to(next(iter(models.values())).device)
        return Visit(each(lambda s: s[place], models), {"place": place})

    def work(net: Net, task: Task[Visit, tuple[()]]) -> Reply[Visit, tuple[()]]:
        got, place = task.down
        local = descend(net, got, task.data, net.loss, opt).params
        return Reply(Visit(delta(local, got), place), (), task.data.count)

    def advance(state: Crossed, up: Visit, r: Round) -> Crossed:
        place = up.place["place"]
        models = grown(state, int(place.max()) + 1)
        models = each(lambda s, d: s.index_add(0, place, d), models, up.model)
        mean = each(lambda s: s.mean(0), models)
        count = len(next(iter(models.values())))
        if r.number <= warmup:
            models = each(lambda s, w: w.expand_as(s).clone(), models, mean)
        elif count > 1:
            other = partners(r.net.learnable(models), choose, r.number - 1)
            models = mix(models, each(lambda s: s[other], models), alpha)
            mean = each(lambda s: s.mean(0), models)
        return Crossed(mean, models)

    return replace(
        fedavg(opt),
        server=lambda net, first: Crossed(first, each(lambda w: w[None], first)),
        send=send,
        work=work,
        advance=advance,
        up={"model": Channel(reduce=keep_all), "place": Channel(reduce=keep_all)},
        private_send=True,
        show=lambda state, r: Model(state.model),
    )
