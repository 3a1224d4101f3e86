"""FedCAC: entries to which a client's loss is sensitive are averaged only with clients that have theirs in like places.

Paper
    Wu, Liu, Niu, Zhu, Tang: "Bold but Cautious: Unlocking the Potential of Personalized Federated Learning through
    Cautiously Aggressive Collaboration", ICCV 2023, arXiv 2309.11103.
What it changes
    Each client starts from the common model, but for its critical entries, which are a mean over a group of its own;
    the group shrinks with the rounds.
Algorithm
    After local training from w_old, in each tensor the share tau of entries with the largest |(w - w_old) w| is
    critical: M_i. Overlap O_ij = 1 - |M_i - M_j| / (2 |M_i|). T = mean O + t / beta (max O - mean O) over the pairs i
    != j of round t = 1, 2, ... Custom model of i: plain mean over i and all j with O_ij >= T. Common model: FedAvg's.
    Client i receives M_i custom_i + (1 - M_i) common.
Defaults
    tau = 0.5, beta = 100, SGD with rate 0.1 and momentum 0.9: the authors' for CIFAR-10 (CIFAR-100: 0.4, 170).
Deviations
    The server puts the two models together and sends one; the authors send both. Overlaps are those of the clients of
    the round, and an absent client keeps its custom model. Ties may make more entries critical; if the threshold is
    under 1e-10, entries that moved at all are. T counts as reached from 1e-9 below, and no group is left after beta
    rounds, even where all overlaps are equal. Running statistics are averaged like entries that are not critical; the
    authors' stay at home, which is a setting of the run. A client that had no turn has no critical entries, and answers
    with the common model.
Neutral
    tau = 0 is FedAvg.
Promise
    None about a common model: what is common in it is not trained alone.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from weft.core import Channel, Method, Model, Net, Reply, Round, Task, Tree, View, method
from weft.core.errors import SettingError
from weft.core.tree import add, delta, each
from weft.local import SGD, Optimiser, descend
from weft.methods.fedavg import fedavg, global_view
from weft.server import keep_all, mean
from weft.server.rows import alike, at, put
from weft.wire import Bits

PAPER = SGD(0.1, momentum=0.9)


class Cac(NamedTuple):
    """Server state: the common model, and for each client a custom model and where it is used."""

    model: Tree
    custom: Tree
    critical: Tree


class Masked(NamedTuple):
    """Upload: the change of the model, and which entries were critical in it."""

    model: Tree
    critical: Tree


def sensitive(w: Tensor, old: Tensor, tau: float) -> Tensor:
    """True for the share tau of entries with the largest |(w - old) w|, ties included; where few moved, for those."""
    s, k = ((w - old) * w).abs(), int(tau * w.numel())
    if not k:
        return s < 0
    edge = s.flatten().topk(k).values[-1]
    return s >= torch.where(edge <= 1e-10, torch.where(s > 1e-20, s, torch.inf).min(), edge)


def groups(critical: Tree, progress: float) -> Tensor:
    """Who is averaged with whom [cohort, cohort], rows sum to 1; `progress` is t / beta."""
    flat = torch.cat([m.flatten(1).double() for m in critical.values()], 1)
    size, other = flat.sum(1, keepdim=True), ~torch.eye(len(flat), dtype=torch.bool, device=flat.device)
    overlap = 1 - (size + size.T - 2 * flat @ flat.T) / (2 * size).clamp(min=1)
    pairs = overlap[other] if len(flat) > 1 else overlap[0]
    least = pairs.mean() + progress * (pairs.max() - pairs.mean())
    together = ((overlap >= least - 1e-9) & (progress <= 1) | ~other).double()
    return together / together.sum(1, keepdim=True)


@method("FedCAC", "personalised", neutral=("fedavg", {"opt": PAPER}, {"tau": 0.0}))
def fedcac(opt: Optimiser = PAPER, tau: float = 0.5, beta: int = 100) -> Method:
    """FedCAC. opt: the local optimiser; tau: share of critical entries; beta: rounds until no group is left."""
    if not 0 <= tau <= 1 or beta < 1:
        raise SettingError(f"tau = {tau} and beta = {beta} of fedcac: use a share, and a number of rounds above 0")

    def send(state: Cac, r: Round) -> Model:
        custom, critical = at(state.custom, r), at(state.critical, r)
        common = {k: x.expand(len(r.ids), *x.shape) for k, x in state.model.items()}
        return Model({**common, **each(lambda m, x, y: torch.where(m, x, y), critical, custom, common)})

    def work(net: Net, task: Task[Model, tuple[()]]) -> Reply[Masked, tuple[()]]:
        got = task.down.model
        local = descend(net, got, task.data, net.loss, opt).params
        critical = each(lambda w, old: sensitive(w, old, tau), net.learnable(local), got)
        return Reply(Masked(delta(local, got), critical), (), task.data.count)

    def advance(state: Cac, up: Masked, r: Round) -> Cac:
        models, share = add(send(state, r).model, up.model), groups(up.critical, r.number / beta)
        custom = each(lambda x: torch.tensordot(share.to(x), x, 1), r.net.learnable(models))
        assert r.weights is not None
        return Cac(mean(models, r.weights), put(state.custom, r, custom), put(state.critical, r, up.critical))

    def server(net: Net, first: Tree) -> Cac:
        learnable = net.learnable(first)
        return Cac(first, alike(learnable), alike(each(lambda x: torch.zeros_like(x, dtype=torch.bool), learnable)))

    return replace(
        fedavg(opt),
        server=server,
        work=work,
        send=send,
        advance=advance,
        views={"personal": View(global_view, data=False)},
        up={"model": Channel(reduce=keep_all), "critical": Channel(encode=Bits(), reduce=keep_all)},
        private_send=True,
    )
