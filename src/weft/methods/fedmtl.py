"""FedMTL: one model per client, tied to the others by a matrix of relations that is learnt from the models.

Paper
    Smith, Chiang, Sanjabi, Talwalkar: "Federated Multi-Task Learning", NeurIPS 2017, arXiv 1705.10467 (MOCHA).
What it changes
    Nothing is averaged: the models W = [w_1 .. w_m] of all clients minimise the sum of their losses + lam tr(W Omega
    W^T), and Omega says who is like whom.
Algorithm
    Client t descends on F_t(w) + lam (Omega_tt ||w||^2 + 2 <w, sum_s Omega_ts w_s>), s over the others, whose models
    stand still in the turn; so its download is one vector and a number. Before every round the server renews Omega =
    Sigma^-1, Sigma = (W^T W)^(1/2) / tr (W^T W)^(1/2); `relation="mean"` keeps Omega = I - 11^T / m, whose penalty is
    lam sum_t ||w_t - wbar||^2.
Defaults
    relation = learnt, as in the paper. lam = 1e-3 and a rate of 0.05; the authors tune lam, to 1e-4 in their example.
Deviations
    The paper solves convex problems in their dual; here plain gradient steps on the same primal, for any network.
    Eigenvalues of W^T W are held at 1e-4 of the largest (the authors: at 1e-7), since at first all models are equal.
    The server keeps the last model of everyone: memory grows with the clients. Running statistics stay at home. A
    client that had no turn answers with the minimiser of its penalty, what the others say of it. In PFLlib no gradient
    of the penalty is left, which is local-only training; in LG-FedAvg's code it pulls the sum of all models to 0.
Neutral
    lam = 0 trains every client alone.
Promise
    None about a common model: there is no such model.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from weft.core import Batch, Channel, Fit, Method, Model, Net, Predict, Reply, Round, Task, Tree, View, method
from weft.core.tree import add, delta, dot, each, scale, sq_norm, where
from weft.local import SGD, Optimiser, descend
from weft.methods.fedavg import fedavg
from weft.server import keep_all, rows

FLOOR = 1e-4  # of the largest eigenvalue


class Bank(NamedTuple):
    """Server state: everybody's last model, [1, ...] while all are alike."""

    models: Tree


class Ties(NamedTuple):
    """Download: sum_s Omega_ts w_s over the others, and Omega_tt."""

    others: Tree
    own: Tree


def relations(models: Tree) -> Tensor:
    """Omega of the models of all clients, [clients, clients]: the inverse of (W^T W)^(1/2) with trace 1."""
    flat = torch.cat([x.flatten(1) for x in models.values()], 1)
    size, v = torch.linalg.eigh(flat @ flat.T)
    root = size.clamp(min=FLOOR * size[-1].clamp(min=1e-30)).sqrt()
    omega: Tensor = (v * (root.sum() / root)) @ v.T
    return omega


def centring(models: Tree) -> Tensor:
    """I - 11^T / m, whose penalty is the squared distance of all models to their mean."""
    like = next(iter(models.values()))
    return torch.eye(len(like), dtype=like.dtype, device=like.device) - 1 / len(like)


@method("FedMTL", "personalised", neutral=("local", {}, {"lam": 0.0}))
def fedmtl(opt: Optimiser = SGD(0.05), lam: float = 1e-3, relation: Literal["learnt", "mean"] = "learnt") -> Method:
    """FedMTL. opt: the local optimiser; lam: weight of the penalty; relation: Omega learnt, or a pull to the mean."""

    def send(state: Bank, r: Round) -> Ties:
        models = rows.spread(state.models, r.population)
        omega = relations(models) if relation == "learnt" else centring(models)
        ids = r.ids.to(omega.device)
        apart = (omega - omega.diagonal().diag())[ids]
        return Ties(each(lambda x: torch.tensordot(apart, x, 1), models), {"weight": omega.diagonal()[ids]})

    def work(net: Net, task: Task[Ties, Tree]) -> Reply[Model, Tree]:
        (others, own), old = task.down, task.mine

        def loss(w: Tree, batch: Batch, others: Tree, weight: Tensor) -> Fit:
            value, buffers = net.loss(w, batch)
            p = net.learnable(w)
            return Fit(value + lam * (weight * sq_norm(p) + 2 * dot(p, others)), buffers)

        new = descend(net, old, task.data, loss, opt, given=(others, own["weight"])).params
        return Reply(Model(net.learnable(delta(new, old))), new, task.data.count)

    def advance(state: Bank, up: Model, r: Round) -> Bank:
        return Bank(rows.put(state.models, r, add(rows.at(state.models, r), up.model)))

    def view(net: Net, task: Task[Ties, Tree]) -> Predict:
        said = scale(task.down.others, -1 / task.down.own["weight"])
        own = where(task.data.past > 0, task.mine, {**task.mine, **said})
        return lambda x: net.apply(own, x).logits

    return replace(
        fedavg(opt),
        server=lambda net, first: Bank(rows.alike(net.learnable(first))),
        client=lambda net, first: first,
        send=send,
        work=work,
        advance=advance,
        private_send=True,
        views={"personal": View(view)},
        up={"model": Channel(reduce=keep_all)},
    )
