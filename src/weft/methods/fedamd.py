"""FedAMD: some clients of a round refresh a common direction, the others follow it with variance-reduced steps.

Paper
    Wu, Guo, Qu, He, Liu, Gao: "Anchor Sampling for Federated Learning with Partial Client Participation", ICML 2023,
    arXiv 2206.05891.
What it changes
    The server holds one gradient per client, whose mean v stands in for those that are absent. In each round a client
    is an anchor with probability p, and renews its gradient, or a miner, and trains along v.
Algorithm
    Before the first round every client sends v_i, its gradient at x. Anchor: v_i <- gradient of all its examples at x,
    which enters v from the next round on. Miner: y_0 = x, d = v, and on each batch d <- d - grad f_i(y_{k-1}) + grad
    f_i(y_k), y_{k+1} = y_k - eta_l d, so that the first step is along v. Server: x <- x + eta_g times the plain mean of
    y_K - x over the miners; without any, x stays.
Defaults
    p = 0.2, eta_g = 1, eta_l = 0.01, as in the authors' code. It bears no long steps: d adds up differences of batches.
Deviations
    The server holds v_i for every client, as the authors' code does: its memory grows with the clients. v is the mean
    over the clients that took part in the opening or were anchors since. Clients flip the coin, so that all receive v.
    Local work is counted in epochs (theirs: 10 steps), and p is constant. Gradients are taken in training mode with the
    same batch and the same dropout, which keeps the terms of the first step equal; the authors' networks judge. Those
    of anchors are summed over batches. Running statistics follow y_k, and take the plain mean over miners.
Neutral
    None. With fresh v_i, all clients as miners and one step it is gradient descent on the mean loss.
Promise
    It reaches the optimum of quadratics with different minimisers, also under partial participation, if v is renewed
    often for the length of the steps (there with p = 0.5): with old gradients long steps overshoot.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from weft.core import Batch, Channel, Method, Net, Phase, Reply, Round, Task, Tree, method
from weft.core.errors import SettingError
from weft.core.stream import code, fold, uniform
from weft.core.tree import add, delta, each, sub, where, zeros
from weft.local import SGD, scan
from weft.local.gradient import gradient, mean_gradient, plain_sgd
from weft.methods.fedavg import fedavg
from weft.server import keep_all, rows


class Bullseye(NamedTuple):
    """Server state: the model, and the gradient of each client that has sent one."""

    model: Tree
    gradients: Tree
    seen: Tree


class Aim(NamedTuple):
    """Download: the model and the mean gradient."""

    model: Tree
    v: Tree


class Shot(NamedTuple):
    """Upload: a miner's change of the model, or an anchor's gradient; and which of the two."""

    model: Tree
    role: Tree


class Walk(NamedTuple):
    """Carry of the local steps."""

    y: Tree
    before: Tree
    d: Tree


@method(
    "FedAMD",
    "optimisation",
    reaches_optimum=True,
    exempt={
        "names": "the server's gradients stand in the order of the clients' numbers",
        "blend": "FedAMD's anchors send a gradient in the place of a change",
    },
)
def fedamd(opt: SGD = SGD(0.01), p: float = 0.2, eta_g: float = 1.0) -> Method:
    """FedAMD. opt: plain SGD; p: probability of being an anchor; eta_g: server step."""
    plain_sgd("fedamd", opt)
    if not 0 <= p < 1:
        raise SettingError(f"p = {p} leaves no clients that train: use a probability of at least 0 and below 1")

    def send(state: Bullseye, r: Round) -> Aim:
        gradients, seen = (rows.spread(tree, r.population) for tree in state[1:])
        return Aim(state.model, rows.mean_of_seen(gradients, seen))

    def shoot(net: Net, task: Task[Aim, tuple[()]], chance: float) -> Reply[Shot, tuple[()]]:
        (x, v), data = task.down, task.data
        anchor = uniform(fold(data.turn.key, code("anchor")), (), data.count.dtype) < chance

        def step(carry: Walk, batch: Batch, rate: Tensor) -> Walk:
            y, before, d = carry
            g, buffers = gradient(net, y, batch)
            d = add(sub(d, gradient(net, before, batch)[0]), g)
            change, _ = opt.update(d, {}, net.learnable(y), rate)
            return Walk({**y, **add(net.learnable(y), change), **buffers}, y, d)

        mined = zeros(x) if chance == 1 else delta(scan(step, Walk(x, x, v), data, given=(data.rate,)).y, x)
        sent = where(anchor, {**zeros(mined), **mean_gradient(net, x, data, "whole")}, mined)
        return Reply(Shot(sent, {"anchor": anchor.to(data.count.dtype)}), (), data.count)

    def advance(state: Bullseye, up: Shot, r: Round) -> Bullseye:
        anchor = up.role["anchor"]
        share = (1 - anchor) / (1 - anchor).sum().clamp(min=1)
        step = each(lambda s: torch.tensordot(share, s, 1), up.model)
        step = {k: s if k in r.net.buffers else eta_g * s for k, s in step.items()}
        old, seen = rows.at(state.gradients, r), rows.at(state.seen, r)["seen"]
        renewed = each(lambda g, s: torch.where(anchor.reshape(-1, *[1] * (g.ndim - 1)) > 0, s, g), old, up.model)
        known = {"seen": torch.maximum(seen, anchor.to(seen))}
        gradients, marks = rows.put(state.gradients, r, renewed), rows.put(state.seen, r, known)
        return Bullseye(add(state.model, step), gradients, marks)

    made = replace(
        fedavg(opt),
        server=lambda net, first: Bullseye(first, rows.alike(zeros(net.learnable(first))), rows.NOBODY),
        send=send,
        work=lambda net, task: shoot(net, task, p),
        advance=advance,
        up={"model": Channel(reduce=keep_all), "role": Channel(reduce=keep_all)},
        phases={"local": Phase(), "whole": Phase(epochs=1)},
    )
    everyone = replace(made, work=lambda net, task: shoot(net, task, 1.0), phases={"whole": Phase(epochs=1)})
    return replace(made, opening=everyone)
