"""BTFL (Zhou, Liu 2025): a common and a personal head, mixed anew for each test example by two Bayesian updates."""

from __future__ import annotations

from dataclasses import dataclass
from math import lgamma

import numpy as np

from .descent import descend, mean, minus
from .model import Array, Tree, softmax
from .stepper import Stepper
from .world import World

BATCH = 32  # by which the penalty is divided, whatever the batch's size


@dataclass
class Pair:
    """What a client answers with: the received model, the head fitted to it, [C, d], and what was seen in training."""

    model: Tree
    head: Array
    own: Array  # P_i [Q, d]
    others: Array | None  # P_g [Q, d]; None: nobody else was in the round
    h_l: float
    h_g: float


def log_softmax(z: Array) -> Array:
    """Of one example."""
    return np.asarray(z - z.max() - np.log(np.exp(z - z.max()).sum()))


def entropy(z: Array) -> float:
    """Of softmax(z) of one example, in nats."""
    return -float((softmax(z) * log_softmax(z)).sum())


def quantised(f: Array, Q: int) -> Array:
    """The level of each feature; those below 0 are at level 0."""
    return np.maximum(np.rint(np.tanh(f) * (Q - 1)), 0).astype(int)


def histogram(f: Array, Q: int) -> Array:
    """[Q, d], columns summing to 1."""
    q = quantised(f, Q)
    return np.array([[np.mean(q[:, j] == v) for j in range(q.shape[1])] for v in range(Q)])


def likelihood(r: float, kappa: float) -> float:
    """Lambda."""
    return 1 + kappa * np.tanh(r - 1) if r >= 1 else 1 / (1 + kappa * np.tanh(1 / r - 1))


def external(alpha: float, beta: float, lam: float) -> float:
    """E: the mean of m / (m + (1 - m) lambda) under Beta(alpha, beta), by trapezoids from 0.01 to 0.99."""
    m = np.linspace(0.01, 0.99, 100)
    density = np.exp(
        lgamma(alpha + beta) - lgamma(alpha) - lgamma(beta) + (alpha - 1) * np.log(m) + (beta - 1) * np.log(1 - m)
    )
    f = density * m / (m + (1 - m) * lam)
    return float(((f[1:] + f[:-1]) / 2 * np.diff(m)).sum())


def answers(world: World, pair: Pair, x: Array, *, Q: int, kappa: float, U: float, stream: int) -> tuple[Array, Array]:
    """(log answers [n, C], shares e [n]) to a test stream that comes in batches of `stream`."""
    c, classes = min(0.2, 1 / (2 * Q)), len(pair.head)
    alpha = beta = 1.0
    out, shares = [], []
    for begin in range(0, len(x), stream):
        up_alpha = up_beta = 0
        for row in x[begin : begin + stream]:
            f = world.model.features(pair.model, row[None])
            g, p, q = world.model.logits(pair.model, row[None])[0], f[0] @ pair.head.T, quantised(f[0], Q)
            e, d = 0.5, len(q)
            if pair.others is not None:
                a_l, a_g = (
                    sum(np.log(c + (1 - c * Q) * seen[q[j], j]) for j in range(d)) for seen in (pair.own, pair.others)
                )
                high_l, high_g = entropy(p), entropy(g)
                u_l = np.exp((high_l - pair.h_l) / pair.h_l)
                u_g = np.exp((high_g - np.log(classes)) / np.log(classes))
                e = external(alpha, beta, likelihood(np.exp((a_l * u_l - a_g * u_g) / d), kappa))
                up_alpha += a_l < a_g and high_g < pair.h_g and high_l > pair.h_l
                up_beta += a_l > a_g and high_l < pair.h_l and high_g > pair.h_g
            out.append(e * log_softmax(g) + (1 - e) * log_softmax(p))
            shares.append(e)
        alpha, beta = alpha + up_alpha, beta + up_beta
        if alpha + beta > U:
            alpha, beta = (v / (alpha + beta) * U / 10 + 1 for v in (alpha, beta))
    return np.array(out), np.array(shares)


def btfl(
    world: World, heads: dict[int, Array], *, lr: float, Q: int, sigma: float, momentum: float = 0.0
) -> tuple[Tree, dict[int, Pair], dict[tuple[int, int], tuple[Tree, Array]]]:
    """(common model, what who had a turn answers with, (round, client) -> change and P_i); `heads`: the first ones."""
    net, model = world.model, dict(world.first)
    head, pairs = dict(heads), dict[int, Pair]()
    sent: dict[tuple[int, int], tuple[Tree, Array]] = {}
    for number, turn in enumerate(world.turns, 1):
        seen = {i: histogram(net.features(model, world.x[i]), Q) for i in turn.ids}
        end = {}
        for i in turn.ids:
            step, w = Stepper(lr, momentum), {"w": head[i]}
            for rows in turn.batches[i]["head"]:
                f, y = net.features(model, world.x[i][rows]), world.y[i][rows]
                gap = (softmax(f @ w["w"].T) - np.eye(len(w["w"]))[y]) / len(y)
                w = step(w, {"w": gap.T @ f})
            head[i] = w["w"]
            f, g = net.features(model, world.x[i]), net.logits(model, world.x[i])
            others = [seen[j] for j in turn.ids if j != i]
            pairs[i] = Pair(
                dict(model),
                head[i],
                seen[i],
                np.mean(others, axis=0) if others else None,
                float(np.mean([entropy(z) for z in f @ head[i].T])),
                float(np.mean([entropy(z) for z in g])),
            )

            def penalty(p: Tree, x: Array, y: Array) -> Tree:
                return net.grad_through_features(p, x, sigma * np.sign(net.features(p, x, train=True)) / BATCH)

            end[i] = descend(world, i, model, turn.batches[i]["local"], lr=lr, momentum=momentum, also=penalty)
        sent |= {(number, i): (minus(end[i], model), seen[i]) for i in turn.ids}
        if turn.ids:
            model = mean([end[i] for i in turn.ids], world.counts(turn.ids))
    return model, pairs, sent
