"""FedPAC: features are aligned with common class centroids, and every client gets the mixture of heads that suits it.

Paper
    Xu, Tong, Huang: "Personalized Federated Learning with Feature Alignment and Classifier Collaboration", ICLR 2023,
    arXiv 2306.11867.
What it changes
    Layers below the head are averaged, and learn to put examples near the centroid of their class; each client's head
    is a mixture of the round's heads, found by a quadratic programme.
Algorithm
    Before training, with label shares p_k, class means mu_k and all features f of the client: h_i = (p_k mu_k)_k, V_i =
    (mean ||f||^2 - sum_k p_k^2 ||mu_k||^2) / n_i. Head: one epoch of SGD with the other layers fixed. They: E epochs
    with the head fixed, on CE + lambda * mean over examples and dimensions of (f(x) - c_y)^2. Server: layers <- sum_i
    n_i / n * layers_i; c_k <- mean over all examples of class k of the round's features after training; head_i <-
    sum_j alpha_j head_j, alpha = argmin over the simplex of a' P a, P = diag(V) + ((h_i - h_j) . (h_i - h_l))_jl.
    Weights under 0.001 are left out.
Defaults
    lambda = 1, head rate 0.1, SGD with rate 0.01, momentum 0.5 and weight decay 5e-4, as in the authors' code.
Deviations
    Each phase has an optimiser of its own; running statistics follow the phase in which their layers learn. A class
    without a common centroid is drawn to the client's own one of before the turn; nothing is drawn in the first round.
    A class that nobody brings keeps its centroid. V_i is at least 1e-6: one example has no variance, and would look
    free of noise. The programme is solved exactly, so that no eigenvalue needs to be mended. The mixture comes back in
    a second exchange of the same round, also of the last one, where the authors leave it out. A client that had no turn
    answers with the mean of the heads.
Neutral
    None.
Promise
    None about a common model: there is no such model.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from weft.core import Batch, Channel, Fit, Method, Net, Nothing, Phase, Predict, Reply, Round, Task, Tree, View, method
from weft.core.net import masked_mean
from weft.core.select import role
from weft.core.tree import add, delta, each, where
from weft.local import SGD, Optimiser, descend
from weft.local.classes import class_sums
from weft.local.frozen import within
from weft.methods.fedavg import personal_layers
from weft.server import keep_all, total
from weft.server.rows import NOBODY, alike, at, mean_of_seen, met, put
from weft.server.simplex import best_mixture

HEAD = role("head")
LEAST = 1e-6  # the smallest variance


class Pac(NamedTuple):
    """Server state: shared layers, centroids [classes, width], who has which head, and who has sent one."""

    model: Tree
    protos: Tree
    heads: Tree
    seen: Tree


class Down(NamedTuple):
    """Download: shared layers, centroids and which of them are known."""

    model: Tree
    protos: Tree


class Shown(NamedTuple):
    """What views get: shared layers, and the head of a client that had no turn."""

    model: Tree
    head: Tree


class Mixed(NamedTuple):
    """The second download: the mixture of heads."""

    head: Tree


class Up(NamedTuple):
    """Upload: changes of layers and head, sums and counts of the classes' features, h and V."""

    model: Tree
    head: Tree
    protos: Tree
    stats: Tree


def mixtures(h: Tensor, v: Tensor) -> Tensor:
    """The weights alpha [clients, clients], a row for each client, from h [clients, ...] and V [clients]."""
    flat = h.flatten(1).double().cpu().numpy()
    gram, noise = flat @ flat.T, np.diag(v.double().cpu().numpy().clip(min=LEAST))
    rows = []
    for i in range(len(flat)):
        apart = gram[i, i] - gram[i][None] - gram[:, i][:, None] + gram
        alpha = best_mixture(noise + apart)
        alpha = np.where(alpha < 1e-3, 0.0, alpha)
        rows.append(alpha / alpha.sum())
    return torch.from_numpy(np.stack(rows))


@method("FedPAC", "personalised", off={"lam": 0.0})
def fedpac(
    opt: Optimiser = SGD(0.01, momentum=0.5, weight_decay=5e-4),
    lam: float = 1.0,
    lr_head: float = 0.1,
    head_epochs: int = 1,
) -> Method:
    """FedPAC. opt: the local optimiser; lam: weight of the alignment; lr_head, head_epochs: of the head."""

    def server(net: Net, first: Tree) -> Pac:
        head, shared = net.split(first, HEAD)
        like = next(iter(first.values()))
        protos = {"mean": like.new_zeros(net.classes, net.width), "known": like.new_zeros(net.classes)}
        return Pac(shared, protos, alike(head), NOBODY)

    def work(net: Net, task: Task[Down, Tree]) -> Reply[Up, Tree]:
        (got, protos), own, data = task.down, task.mine, task.data
        start = {**own, **got}
        sums, count = class_sums(net, start, data)
        h = sums / data.count
        square = masked_mean(net.apply(start, data.all().x).features.square().sum(1), data.all().live)
        v = (square - h.square().sum()) / data.count
        local = torch.where(protos["known"][:, None] > 0, protos["mean"], sums / count.clamp(min=1)[:, None])
        begun = protos["known"].max()

        def loss(w: Tree, batch: Batch, centroids: Tensor, begun: Tensor) -> Fit:
            out, buffers = net.train(w, batch)
            gap = (out.features - centroids[batch.y]).square().mean(1)
            value = net.criterion(out.logits, batch.y) + lam * begun * gap
            return Fit(masked_mean(value, batch.live), buffers)

        for_head = replace(opt, lr=lr_head)  # type: ignore[type-var]
        fitted = descend(net, start, data, within(net, HEAD), for_head, only=HEAD, phase="head").params
        aligned = within(net, ~HEAD, loss)
        trained = descend(net, fitted, data, aligned, opt, given=(local, begun), only=~HEAD).params
        head, shared = net.split(trained, HEAD)
        sums, count = class_sums(net, trained, data)
        up = Up(delta(shared, got), delta(head, own), {"sum": sums, "count": count}, {"h": h, "V": v})
        return Reply(up, head, data.count)

    def advance(state: Pac, up: Up, r: Round) -> Pac:
        (sums, count), old = up.protos.values(), state.protos
        protos = {
            "mean": torch.where(count[:, None] > 0, sums / count.clamp(min=1)[:, None], old["mean"]),
            "known": torch.where(count > 0, 1, old["known"]),
        }
        alpha = mixtures(up.stats["h"], up.stats["V"])
        heads = each(lambda x: torch.tensordot(alpha.to(x), x, 1), add(at(state.heads, r), up.head))
        return Pac(add(state.model, up.model), protos, put(state.heads, r, heads), met(state.seen, r))

    def view(net: Net, task: Task[Shown, Tree]) -> Predict:
        shared, head = task.down
        own = {**shared, **where(task.data.past > 0, task.mine, head)}
        return lambda x: net.apply(own, x).logits

    first = personal_layers(
        HEAD,
        opt,
        server=server,
        send=lambda state, r: Down(state.model, state.protos),
        show=lambda state, r: Shown(state.model, mean_of_seen(state.heads, state.seen)),
        work=work,
        advance=advance,
        views={"personal": View(view)},
        up={
            "model": Channel(),
            "head": Channel(reduce=keep_all),
            "protos": Channel(reduce=total),
            "stats": Channel(reduce=keep_all),
        },
        phases={"local": Phase(), "head": Phase(epochs=head_epochs)},
    )
    back = replace(
        first,
        send=lambda state, r: Mixed(at(state.heads, r)),
        private_send=True,
        work=lambda net, task: Reply(Nothing(), task.down.head, task.data.count),
        advance=lambda state, up, r: state,
        up={},
        phases={},
    )
    return replace(first, next=back)
