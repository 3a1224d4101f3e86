"""IFCA: the server keeps several models, and every client trains the one that fits its data best.

Paper
    Ghosh, Chung, Yin, Ramchandran: "An Efficient Framework for Clustered Federated Learning", NeurIPS 2020, arXiv
    2006.04088.
What it changes
    K models are sent; a client chooses its cluster anew in every turn, and each model is averaged over those who chose
    it.
Algorithm
    j_i = argmin_j F_i(theta_j) over the client's examples; theta_i from theta_{j_i} by tau local steps; theta_j <- mean
    of theta_i over the clients of the round with j_i = j. A model that nobody chose stays as it is. A client answers
    with the model of least loss on its own training examples.
Defaults
    clusters = 4 and a rate of 0.1, as in the paper's runs on rotated MNIST; local steps are the run's epochs.
Deviations
    Losses are those of judging. The first model is that of the run's seed, the others are drawn with seeds made from
    it; the paper asks for some luck, and restarts. Means are uniform as in the authors' code, for running statistics
    too. Averaging models, not gradients, is the paper's second option; its shared layers are left out. A client that
    had no turn chooses among the models like any other.
Neutral
    clusters = 1 is FedAvg with equal weights.
Promise
    None about a common model: there are several.
"""

from __future__ import annotations

import zlib
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from weft.core import Channel, Data, Method, Net, Predict, Reply, Round, Task, Tree, View, method
from weft.core.errors import SettingError
from weft.core.net import masked_mean
from weft.core.tree import add, delta, each
from weft.local import SGD, Optimiser, descend
from weft.methods.fedavg import fedavg
from weft.server import group_means, keep_all


class Several(NamedTuple):
    """Server state and download: models [clusters, ...]."""

    models: Tree


class Choice(NamedTuple):
    """Upload: the change of the chosen model, and its number."""

    model: Tree
    choice: Tree


def pick(models: Tree, number: Tensor) -> Tree:
    """One of several models."""
    return each(lambda x: x.index_select(0, number.reshape(1))[0], models)


def fittest(net: Net, models: Tree, data: Data) -> Tensor:
    """The number of the model with the least loss on the client's examples, an int64 scalar."""
    whole, count = data.all(), len(next(iter(models.values())))
    answers = [net.apply(each(lambda x, j=j: x[j], models), whole.x).logits for j in range(count)]
    losses = [torch.where(whole.live > 0, net.criterion(z, whole.y), 0) for z in answers]  # padding is others' rows
    return torch.stack([masked_mean(loss, whole.live) for loss in losses]).argmin()


@method("IFCA", "clustered", off={"clusters": 1})
def ifca(opt: Optimiser = SGD(0.1), clusters: int = 4) -> Method:
    """IFCA. opt: the local optimiser; clusters: number of models."""
    if clusters < 1:
        raise SettingError(f"clusters = {clusters} leaves no model: use 1 or more, such as 4")

    def server(net: Net, first: Tree) -> Several:
        seed = zlib.crc32(next(iter(first.values())).cpu().numpy().tobytes())
        models = [first, *(net.init(seed + j) for j in range(1, clusters))]
        return Several(each(lambda *x: torch.stack(x), *models))

    def work(net: Net, task: Task[Several, tuple[()]]) -> Reply[Choice, tuple[()]]:
        number = fittest(net, task.down.models, task.data)
        got = pick(task.down.models, number)
        local = descend(net, got, task.data, net.loss, opt).params
        return Reply(Choice(delta(local, got), {"number": number}), (), task.data.count)

    def advance(state: Several, up: Choice, r: Round) -> Several:
        chosen = up.choice["number"]
        return Several(add(state.models, group_means(up.model, chosen, torch.ones_like(chosen), clusters)))

    def view(net: Net, task: Task[Several, tuple[()]]) -> Predict:
        own = pick(task.down.models, fittest(net, task.down.models, task.data))
        return lambda x: net.apply(own, x).logits

    return replace(
        fedavg(opt),
        server=server,
        work=work,
        advance=advance,
        views={"personal": View(view)},
        up={"model": Channel(reduce=keep_all), "choice": Channel(reduce=keep_all)},
    )
