"""FedAS: received layers are aligned with the client's last features before training; sharp clients count for more.

Paper
    Yang, Huang, Ye: "FedAS: Bridging Inconsistency in Personalized Federated Learning", CVPR 2024.
What it changes
    FedPer, whose received layers learn once the class means of the client's old features before they are trained, and
    whose uploads are weighted by the trace of the Fisher information.
Algorithm
    p_c: mean feature of the client's examples of class c under its model of the last turn. Alignment, one epoch of SGD
    on the received layers: sum over the classes of the batch of the mean squared distance to p_c. Then E epochs on all
    layers, with the client's own head. F_k = sum over batches of ||gradient of the batch's mean loss||^2. Shared layers
    <- sum_k F_k / (sum F) * w_k.
Defaults
    eta = 0.005; the alignment's rate is 0.01, whatever the schedule, as in the authors' code.
Deviations
    The authors align in batches of 16 and leave out the short last batch; here batches are what the run says. Features
    are compared, and F_k is taken, in judging mode. In its first turn a client has no old features, and nothing is
    aligned; the authors align with those of the first model. Heads are not sent: theirs are averaged, and used by
    nobody. Running statistics of shared layers are received, and take the mean weighted by F_k. Judged is the model of
    the client's last turn; a client that had no turn answers with the present layers and the first head.
Neutral
    None: with an alignment of rate 0 it is FedPer but for the weights.
Promise
    None about a common model: there is no such model.
"""

from __future__ import annotations

import math

from torch import Tensor
from torch.func import grad

from weft.core import Batch, Fit, Method, Model, Net, Phase, Reply, Select, Task, Tree, method
from weft.core.net import masked_mean
from weft.core.select import role
from weft.core.tree import delta, sq_norm
from weft.local import SGD, Clamped, Optimiser, descend, scan
from weft.local.classes import class_sums
from weft.methods.fedavg import kept_view, personal_layers

LEAST = 1e-30  # added to a trace, so that traces of 0 weight alike


def trace(net: Net, tree: Tree, batch: Batch) -> Tensor:
    """Squared length of the gradient of a batch's mean loss, in judging mode."""

    def loss(p: Tree) -> Tensor:
        return masked_mean(net.criterion(net.apply({**tree, **p}, batch.x).logits, batch.y), batch.live)

    return sq_norm(grad(loss)(net.learnable(tree)))


@method("FedAS", "personalised", off={"lr_align": 0.0})
def fedas(opt: Optimiser = SGD(0.005), lr_align: float = 0.01, keep: Select = role("head")) -> Method:
    """FedAS. opt: the local optimiser; lr_align: rate of the alignment; keep: what stays at the client, the head."""

    def align(net: Net, w: Tree, batch: Batch, means: Tensor) -> Fit:
        gap = (net.apply(w, batch.x).features - means[batch.y]).square().mean(1) * batch.live
        alike = (batch.y[:, None] == batch.y).to(gap) @ batch.live  # how many of the batch are of the same class
        return Fit((gap / alike.clamp(min=1)).sum(), {})

    def work(net: Net, task: Task[Model, Tree]) -> Reply[Model, Tree]:
        got, old, data = task.down.model, task.mine, task.data
        total, count = class_sums(net, old, data)
        means = total / count.clamp(min=1)[:, None]

        def loss(w: Tree, batch: Batch, means: Tensor) -> Fit:
            return align(net, w, batch, means)

        still = Clamped(lr_align, -math.inf, math.inf)
        start = descend(net, {**old, **got}, data, loss, still, given=(means,), only=~keep, phase="align").params
        local = descend(net, start, data, net.loss, opt).params

        def add_trace(total: Tensor, batch: Batch, tree: Tree) -> Tensor:
            return total + trace(net, tree, batch)

        fisher = scan(add_trace, data.rate.new_zeros(()), data, given=(local,), phase="fisher")
        return Reply(Model(delta(net.split(local, keep)[1], got)), local, fisher + LEAST)

    return personal_layers(
        keep,
        opt,
        client=lambda net, first: first,
        work=work,
        views={"personal": kept_view()},
        phases={"local": Phase(), "align": Phase(epochs=1, first=1), "fisher": Phase(epochs=1)},
    )
