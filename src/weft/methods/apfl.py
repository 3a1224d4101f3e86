"""APFL: every client answers with a mixture of a private model and its copy of the common one, and learns the share.

Paper
    Deng, Kamani, Mahdavi: "Adaptive Personalized Federated Learning", 2020, arXiv 2003.13461.
What it changes
    Beside FedAvg's w_k a client learns v_k such that m_k = alpha_k v_k + (1 - alpha_k) w_k is good, and alpha_k itself.
Algorithm
    All gradients at the values before the step: w_k <- w_k - eta grad f(w_k); v_k <- v_k - eta alpha_k grad f(m_k); in
    the first step of a turn alpha_k <- clip(alpha_k - eta_alpha <v_k - w_k, grad f(m_k)>, 0, 1). w <- 1/|S| sum_k w_k.
Defaults
    alpha = 0.5 at first, eta = eta_alpha = 0.05: in the paper one rate serves all three. The inner product runs over
    all entries, so that deep networks may want a smaller eta_alpha.
Deviations
    Parameters are mixed, as in the paper; the authors' code mixes logits, and adds a decay of alpha. Means are uniform;
    running statistics take the mean weighted by n_k. Those of the mixture are its own: they stand in v_k, and are not
    mixed. Judged is the mixture with w_k of the client's last turn, as in the authors' code; a client that had no turn
    answers with the received model.
Neutral
    Whatever alpha, w is FedAvg's with equal weights; with alpha = 1 held fixed, v_k is that of local-only training.
Promise
    The common model, as FedAvg's, does not reach the optimum of quadratics with different minimisers.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.func import grad

from weft.core import Batch, Channel, Method, Model, Net, Predict, Reply, Task, Tree, View, method
from weft.core.tree import add, delta, mix, where
from weft.local import SGD, Optimiser, scan
from weft.methods.fedavg import fedavg, global_view
from weft.server import plain


class Pair(NamedTuple):
    """The two models of a client."""

    w: Tree
    v: Tree


class Mixture(NamedTuple):
    """What a client keeps: both models and the share of the private one."""

    pair: Pair
    alpha: Tensor


def mixed(net: Net, pair: Pair, alpha: Tensor) -> Tree:
    """The mixture alpha v + (1 - alpha) w, with the running statistics that stand in v."""
    return {k: pair.v[k] if k in net.buffers else x for k, x in mix(pair.v, pair.w, alpha).items()}


@method("APFL", "personalised", reaches_optimum=False, off={"lr_alpha": 0.0})
def apfl(opt: Optimiser = SGD(0.05), alpha: float = 0.5, lr_alpha: float = 0.05) -> Method:
    """APFL. opt: the optimiser of both models; alpha: first share of the private one; lr_alpha: its rate (0: none)."""

    def work(net: Net, task: Task[Model, Mixture]) -> Reply[Model, Mixture]:
        got, data = task.down.model, task.data

        def objective(moving: Pair, alpha: Tensor, pair: Pair, batch: Batch) -> tuple[Tensor, Pair]:
            common = net.loss({**pair.w, **moving.w}, batch)
            private = net.loss(mixed(net, Pair(pair.w, {**pair.v, **moving.v}), alpha), batch)
            return common.value + private.value, Pair(common.buffers, private.buffers)

        def step(carry: tuple[Pair, Tensor, Any], batch: Batch, rate: Tensor) -> tuple[Pair, Tensor, Any]:
            pair, alpha, states = carry
            moving = Pair(*map(net.learnable, pair))
            (g, slope), buffers = grad(objective, argnums=(0, 1), has_aux=True)(moving, alpha, pair, batch)
            moves = [opt.update(*part, rate) for part in zip(g, states, moving, strict=True)]
            parts = zip(pair, moving, moves, buffers, strict=True)
            pair = Pair(*({**tree, **add(old, change), **b} for tree, old, (change, _), b in parts))
            moved = (alpha - lr_alpha * rate * slope).clamp(0, 1)
            return pair, torch.where(batch.number == 0, moved, alpha), [state for _, state in moves]

        start = Pair(got, task.mine.pair.v)
        states = [opt.init(net.learnable(tree)) for tree in start]
        pair, share, _ = scan(step, (start, task.mine.alpha, states), data, given=(data.rate,))
        return Reply(Model(delta(pair.w, got)), Mixture(pair, share), data.count)

    def view(net: Net, task: Task[Model, Mixture]) -> Predict:
        own = mixed(net, task.mine.pair, task.mine.alpha)
        own = where(task.data.past > 0, own, task.down.model)
        return lambda x: net.apply(own, x).logits

    return replace(
        fedavg(opt),
        client=lambda net, first: Mixture(
            Pair(first, first), torch.tensor(alpha, dtype=next(iter(first.values())).dtype)
        ),
        work=work,
        views={"global": View(global_view, shared=True), "personal": View(view)},
        up={"model": Channel(reduce=plain)},
    )
