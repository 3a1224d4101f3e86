"""Mime: every local step is one of a central optimiser, whose statistics the server holds fixed for the round.

Paper
    Karimireddy, Jaggi, Kale, Mohri, Reddi, Stich, Suresh: "Breaking the Centralized Barrier for Cross-Device Federated
    Learning", NeurIPS 2021, arXiv 2008.03606 (as "Mime: Mimicking Centralized Stochastic Algorithms in FL").
What it changes
    Momentum or Adam act at the clients, with statistics that only the server renews; and a client's gradients are
    corrected by the mean gradient of the round.
Algorithm
    c = mean over the round's clients of the gradient of all their examples at x. On each batch g = grad f_i(y) - grad
    f_i(x) + c (lite: g = grad f_i(y)), then y <- y - eta U(g, s), with s as received. Momentum: U = (1 - beta) g + beta
    m. Adam: U = ((1 - beta) g + beta m) / (sqrt(v) + eps). x <- mean of y_i; m <- (1 - beta) c + beta m, v <- (1 -
    beta2) c^2 + beta2 v.
Defaults
    The full variant with momentum beta = 0.9, one of the paper's values; beta2 = 0.99 and eps = 1e-3 for Adam.
    eta = 0.05 (the paper tunes it).
Deviations
    The full variant needs c before local training, so its round has two exchanges; lite has one, and sends its
    gradient with the model. Means are uniform, as in the paper; public code weights by numbers of examples. Gradients
    of all examples are summed over batches, in training mode. v starts at eps^2, which the paper does not say. Running
    statistics follow y, have no statistics of their own, and take the mean weighted by n_k.
Neutral
    Lite with beta = 0 is FedAvg with equal weights.
Promise
    None of both kinds: with all clients in every round the full variant reaches the optimum of quadratics with
    different minimisers, with some of them it does not.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from weft.core import Batch, Channel, Method, Model, Net, Phase, Reply, Round, Task, Tree, method
from weft.core.errors import SettingError
from weft.core.tree import add, delta, each, mix, sub, zeros
from weft.local import SGD, scan
from weft.local.gradient import gradient, mean_gradient, plain_sgd
from weft.methods.fedavg import fedavg
from weft.server import plain


class Centre(NamedTuple):
    """Server state and download."""

    model: Tree
    m: Tree
    v: Tree  # empty without Adam
    c: Tree  # of the present round


class Found(NamedTuple):
    """Upload of a mean gradient, and in lite of the model's change."""

    model: Tree
    c: Tree


@method("Mime", "optimisation", off={"variant": "lite", "beta": 0.0})
def mime(
    opt: SGD = SGD(0.05),
    variant: Literal["full", "lite"] = "full",
    base: Literal["momentum", "adam"] = "momentum",
    beta: float = 0.9,
    beta2: float = 0.99,
    eps: float = 1e-3,
) -> Method:
    """Mime. opt: plain SGD, whose rate is eta; variant: with or without the correction; base: the central optimiser.

    beta, beta2, eps: of the central optimiser.
    """
    plain_sgd("mime", opt)
    if variant not in ("full", "lite") or base not in ("momentum", "adam"):
        raise SettingError(f"mime has no variant {variant!r} on {base!r}: use full or lite, on momentum or adam")

    def directed(g: Tree, m: Tree, v: Tree) -> Tree:
        u = mix(m, g, beta)
        return each(lambda a, b: a / (b.sqrt() + eps), u, v) if base == "adam" else u

    def train(net: Net, task: Task[Centre, tuple[()]]) -> Tree:
        x, data = task.down.model, task.data

        def step(y: Tree, batch: Batch, down: Centre, rate: Tensor) -> Tree:
            g, buffers = gradient(net, y, batch)
            if variant == "full":
                g = add(sub(g, gradient(net, down.model, batch)[0]), down.c)
            change, _ = opt.update(directed(g, down.m, down.v), {}, net.learnable(y), rate)
            return {**y, **add(net.learnable(y), change), **buffers}

        return delta(scan(step, x, data, given=(task.down, data.rate)), x)

    def look(net: Net, task: Task[Centre, tuple[()]]) -> Reply[Found, tuple[()]]:
        trained = train(net, task) if variant == "lite" else {}
        c = mean_gradient(net, task.down.model, task.data, "whole")
        return Reply(Found(trained, c), (), task.data.count)

    def move(net: Net, task: Task[Centre, tuple[()]]) -> Reply[Model, tuple[()]]:
        return Reply(Model(train(net, task)), (), task.data.count)

    def renew(state: Centre, change: Tree) -> Centre:
        v = {k: beta2 * b + (1 - beta2) * state.c[k] ** 2 for k, b in state.v.items()}
        return state._replace(model=add(state.model, change), m=mix(state.m, state.c, beta), v=v)

    def found(state: Centre, up: Found, r: Round) -> Centre:
        state = state._replace(c=up.c)
        return renew(state, up.model) if variant == "lite" else state

    def server(net: Net, first: Tree) -> Centre:
        none = zeros(net.learnable(first))
        return Centre(first, none, each(lambda x: torch.full_like(x, eps**2), none) if base == "adam" else {}, none)

    whole, local = {"whole": Phase(epochs=1)}, {"local": Phase()}
    full = variant == "full"
    first = replace(
        fedavg(opt),
        server=server,
        send=lambda state, r: Centre(state.model, {}, {}, {}) if full else state._replace(c={}),
        work=look,
        advance=found,
        up={"model": Channel(reduce=plain), "c": Channel(reduce=plain)},
        phases=whole if full else {**local, **whole},
    )
    second = replace(
        first,
        send=lambda state, r: state,
        work=move,
        advance=lambda state, up, r: renew(state, up.model),
        up={"model": Channel(reduce=plain)},
        phases=local,
    )
    return replace(first, next=second) if full else first
