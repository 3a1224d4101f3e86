"""BTFL (Zhou, Liu 2025): a global and a personal head, mixed for each test example by two Bayesian updates."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import exp, lgamma, log, tanh
from typing import Any

import numpy as np

from .descent import descend, mean
from .model import Array, Tree, softmax
from .world import World

L1_OVER = 32.0


def levels(z: Array, q: int) -> Array:
    """The level of every feature, 0 to q - 1; a negative feature is at 0."""
    return np.round(np.tanh(np.maximum(z, 0.0)) * (q - 1)).astype(int)


def histogram(z: Array, q: int) -> Array:
    """[q, d]: the share of examples at each level, for each feature."""
    at = levels(z, q)
    return np.stack([(at == v).mean(0) for v in range(q)])


def entropy(logits: Array) -> Array:
    p = softmax(logits)
    return np.asarray(-(p * np.log(p)).sum(1))


@dataclass
class Client:
    """What a client keeps."""

    head: Array  # [C, d]
    model: Tree
    own: Array | None = None  # P_i
    others: Array | None = None  # P_g; None: it was alone
    h_l: float = 0.0
    h_g: float = 0.0


@dataclass
class Stream:
    """The Beta posterior of one test stream."""

    alpha: float = 1.0
    beta: float = 1.0
    shares: list[float] = field(default_factory=list)


def share(alpha: float, beta: float, ratio: float) -> float:
    """e: the trapezoid rule on 100 points."""
    m = np.linspace(0.01, 0.99, 100)
    scale = exp(lgamma(alpha + beta) - lgamma(alpha) - lgamma(beta))
    density = scale * m ** (alpha - 1) * (1 - m) ** (beta - 1)
    f = density * m / (m + (1 - m) * ratio)
    return float(sum((f[i] + f[i + 1]) / 2 * (m[i + 1] - m[i]) for i in range(99)))


def softened(r: float, kappa: float) -> float:
    """lambda of r."""
    if r >= 1:
        return 1 + kappa * tanh(r - 1)
    return 1 / (1 + kappa * tanh(1 / r - 1))


def answers(
    world: World, client: Client, x: Array, *, q: int, kappa: float, limit: float, batch: int
) -> tuple[Array, Stream]:
    """(scores [n, C], the stream at its end)."""
    c = min(0.2, 1 / (2 * q))
    out, state = [], Stream()
    for start in range(0, len(x), batch):
        z = world.model.features(client.model, x[start : start + batch])
        g, p = world.model.logits(client.model, x[start : start + batch]), z @ client.head.T
        H_g, H_l = entropy(g), entropy(p)
        at, d, more, less = levels(z, q), z.shape[1], 0, 0
        for i in range(len(z)):
            if client.own is None:
                e = 1.0
            elif client.others is None:
                e = 0.5
            else:
                a_l = sum(log(c + (1 - c * q) * client.own[at[i, j], j]) for j in range(d))
                a_g = sum(log(c + (1 - c * q) * client.others[at[i, j], j]) for j in range(d))
                u_l = exp((H_l[i] - client.h_l) / client.h_l)
                top = log(g.shape[1])
                u_g = exp((H_g[i] - top) / top)
                e = share(state.alpha, state.beta, softened(exp((a_l * u_l - a_g * u_g) / d), kappa))
                more += a_l < a_g and H_g[i] < client.h_g and H_l[i] > client.h_l
                less += a_l > a_g and H_l[i] < client.h_l and H_g[i] > client.h_g
            state.shares.append(e)
            out.append(e * np.log(softmax(g[i])) + (1 - e) * np.log(softmax(p[i])))
        state.alpha, state.beta = state.alpha + more, state.beta + less
        total = state.alpha + state.beta
        if total > limit:
            state.alpha, state.beta = (v / total * limit / 10 + 1 for v in (state.alpha, state.beta))
    return np.stack(out), state


def btfl(
    world: World, first_head: Array, *, lr: float, q: int, sigma: float, **sgd: Any
) -> tuple[Tree, dict[int, Client]]:
    """Phases "head", "local"; (the common model, what each client keeps)."""
    net, common = world.model, dict(world.first)
    clients = {i: Client(first_head, dict(world.first)) for i in range(world.population)}

    def l1(p: Tree, x: Array, y: Array) -> Tree:
        return net.grad_through_features(p, x, sigma * np.sign(net.features(p, x, train=True)) / L1_OVER)

    for turn in world.turns:
        if not turn.ids:
            continue
        sent = []
        for i in turn.ids:
            me, x, y = clients[i], world.x[i], world.y[i]
            z = net.features(common, x)
            me.model, me.own = dict(common), histogram(z, q)
            v = me.head
            for rows in turn.batches[i]["head"]:
                d = softmax(z[rows] @ v.T)
                d[np.arange(len(rows)), y[rows]] -= 1
                v = v - lr * (d.T @ z[rows] / len(rows))
            me.head = v
            me.h_l = float(entropy(z @ v.T).mean())
            me.h_g = float(entropy(net.logits(common, x)).mean())
            sent.append(descend(world, i, common, turn.batches[i]["local"], lr=lr, also=l1, **sgd))
        n = len(turn.ids)
        bar = np.mean([clients[i].own for i in turn.ids], axis=0)
        for i in turn.ids:
            clients[i].others = (n * bar - clients[i].own) / (n - 1) if n > 1 else None
        common = mean(sent, world.counts(turn.ids))
    return common, clients
