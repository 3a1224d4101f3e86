"""FedAMP, HeurFedAMP: each client is pulled to a model of its own in the cloud, mixed from those of like clients.

Paper
    Huang, Chu, Zhou, Wang, Liu, Pei, Zhang: "Personalized Cross-Silo Federated Learning on Non-IID Data", AAAI 2021,
    arXiv 2007.03797.
What it changes
    There is no common model: the server keeps everybody's w_i, and sends client i the mixture u_i = sum_j xi_ij w_j.
Algorithm
    Objective sum_i F_i(w_i) + lambda sum_{i<j} A(||w_i - w_j||^2), A(x) = 1 - exp(-x / sigma). Server, a step on the
    second term: xi_ij = alpha A'(||w_i - w_j||^2), xi_ii = 1 - sum_{j != i} xi_ij. HeurFedAMP: xi_ii is constant, and
    xi_ij = (1 - xi_ii) softmax_j(sigma cos(w_i, w_j)). Client, from its own w_i: SGD on F_i(w) + lambda / (2 alpha)
    ||w - u_i||^2.
Defaults
    lambda / alpha = 1 as in public code; alpha = 0.05, so that the weights of 20 clients are admissible; sigma = 1 in
    units of the median squared distance; HeurFedAMP: xi_ii = 0.1, sigma = 10 (not confirmed in the paper). eta = 0.05.
Deviations
    Squared distances of deep networks lie anywhere between 1 and 10,000, and a fixed sigma makes all weights 0 or all
    alike: they are measured in units of their median over the pairs of the round, and alpha in the same unit.
    unit = "one" is the paper's formula. Weights of others that sum to more than 1 are scaled down to 1, and xi_ii is 0
    then. Absent clients are in the mixtures with the model that they sent last, or the first one. Running statistics
    are each client's own. A client that had no turn answers with the mean of the models that were sent.
Neutral
    lambda = 0 trains every client alone.
Promise
    None about a common model: there is no such model.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from weft.core import Batch, Channel, Fit, Method, Model, Net, Reply, Round, Task, Tree, method
from weft.core.errors import SettingError
from weft.core.tree import add, delta, each
from weft.local import SGD, Optimiser, descend, prox
from weft.methods.fedavg import kept_view
from weft.server import keep_all
from weft.server.rows import NOBODY, alike, at, mean_of_seen, met, put, spread


class Clouds(NamedTuple):
    """Server state: everybody's latest model, a row each, and who has sent one."""

    models: Tree
    seen: Tree


Attention = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(models of the round's clients [k, P], everybody's [n, P], who is another one [k, n]) -> weights of others [k, n]."""


def _amp(opt: Optimiser, pull: float, attention: Attention) -> Method:
    """Both methods, which differ in their weights."""

    def send(state: Clouds, r: Round) -> Model:
        models = spread(state.models, r.population)
        flat = torch.cat([x.flatten(1) for x in models.values()], 1)
        other = torch.arange(r.population, device=flat.device) != r.ids[:, None].to(flat.device)
        xi = attention(flat[r.ids.to(flat.device)], flat, other)
        xi = torch.where(other, xi, 1 - xi.sum(1, keepdim=True))
        return Model(each(lambda x: torch.tensordot(xi, x, 1), models))

    def work(net: Net, task: Task[Model, Tree]) -> Reply[Model, Tree]:
        def loss(w: Tree, batch: Batch, cloud: Tree) -> Fit:
            value, buffers = net.loss(w, batch)
            return Fit(value + prox(net, w, cloud, pull), buffers)

        w = descend(net, task.mine, task.data, loss, opt, given=(task.down.model,)).params
        return Reply(Model(delta(net.learnable(w), task.mine)), w, task.data.count)

    return Method(
        "fedamp",
        server=lambda net, first: Clouds(alike(net.learnable(first)), NOBODY),
        client=lambda net, first: first,
        send=send,
        work=work,
        advance=lambda state, up, r: Clouds(
            put(state.models, r, add(at(state.models, r), up.model)), met(state.seen, r)
        ),
        views={"personal": kept_view()},
        up={"model": Channel(reduce=keep_all)},
        private_send=True,
        show=lambda state, r: Model(mean_of_seen(*state)),
    )


@method(
    "FedAMP",
    "personalised",
    neutral=("local", {}, {"lam": 0.0}),
    exempt={"lost": "squared distances are measured by their median over those who are asked"},
    about="each client is pulled to a mixture of all models, in which those that are near count for more",
)
def fedamp(
    opt: Optimiser = SGD(0.05),
    lam: float = 0.05,
    alpha: float = 0.05,
    sigma: float = 1.0,
    unit: Literal["median", "one"] = "median",
) -> Method:
    """FedAMP. opt: the local optimiser; lam: weight of the attention term; alpha: the server's step; sigma: its width.

    unit: of squared distances, their median or one.
    """
    if alpha <= 0 or sigma <= 0:
        raise SettingError(
            f"alpha = {alpha} and sigma = {sigma} of fedamp must both be above 0: use such as 0.05 and 1"
        )

    def attention(own: Tensor, flat: Tensor, other: Tensor) -> Tensor:
        gap = torch.cdist(own, flat, compute_mode="donot_use_mm_for_euclid_dist").square()
        if unit == "median":
            gap = gap / gap.masked_fill(~other, torch.nan).nanmedian().nan_to_num().clamp(min=1e-30)
        xi = alpha / sigma * torch.exp(-gap / sigma) * other
        return xi / xi.sum(1, keepdim=True).clamp(min=1)

    return _amp(opt, lam / alpha, attention)


@method(
    "HeurFedAMP",
    "personalised",
    neutral=("local", {}, {"pull": 0.0}),
    about="FedAMP by directions: models that point the same way count for more, a client's own as much as is set",
)
def heurfedamp(opt: Optimiser = SGD(0.05), pull: float = 1.0, own: float = 0.1, sigma: float = 10.0) -> Method:
    """HeurFedAMP. opt: the local optimiser; pull: lambda / alpha; own: xi_ii; sigma: how much cosines matter."""
    if not 0 < own < 1:
        raise SettingError(
            f"own = {own} is no share of a client's own model: use a number between 0 and 1, such as 0.1"
        )

    def attention(mine: Tensor, flat: Tensor, other: Tensor) -> Tensor:
        mine, flat = (x / x.norm(dim=1, keepdim=True).clamp(min=1e-30) for x in (mine, flat))
        return (1 - own) * (sigma * mine @ flat.T).masked_fill(~other, -torch.inf).softmax(1).nan_to_num()

    return _amp(opt, pull, attention)
