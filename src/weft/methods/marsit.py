"""Marsit: one bit for each weight, merged without bias from client to client, and every client keeps what was not done.

Paper
    Wu, He, Guo, Qu, Wang, Zhuang, Zhang: "Sign Bit is Enough: A Learning Synchronization Framework for Multi-hop
    All-reduce with Ultimate Compression", DAC 2022, arXiv 2204.06787.
What it changes
    Clients send the signs of their changes, which a ring merges to one sign per weight; each adds to its next change
    what the common step did not do.
Algorithm
    g_m = x - y_m + c_m, with y_m after local SGD. In the first round and every K-th from there x <- x - sum_m n_m / n
    g_m, c_m <- 0. Else the bits of g_m >= 0 go round a ring, whose segments start at different clients: where the bit
    that arrives and the client's own differ, the first stays with probability W / (W + n_m), W the weight of those that
    it has passed. So a bit is 1 with the probability of the share of positive signs. Then x <- x - eta_s (2 bit - 1)
    and c_m <- g_m - eta_s (2 bit - 1).
Defaults
    K = 100, eta_s = 0.001 (not confirmed; the paper tunes it), eta = 0.05.
Deviations
    The server plays the ring in the order of the clients' numbers and draws the bits. c_m needs the outcome, which is
    sent in a second exchange of the round, in bits too. The paper's workers hold copies of the model; here it is sent,
    since a client may have been absent, whose c_m then stays. Clients count by n_m, the paper's are alike. Running
    statistics are not one bit: they take the weighted mean.
Neutral
    K = 1 is FedAvg.
Promise
    It does not reach the optimum of quadratics with different minimisers.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from weft.core import Channel, Method, Model, Net, Nothing, Phase, Reply, Round, Task, Tree, method
from weft.core.errors import SettingError
from weft.core.stream import code, fold, uniform
from weft.core.tree import add, delta, each, scale, sub, zeros
from weft.local import SGD, Optimiser, descend
from weft.methods.fedavg import fedavg
from weft.server import keep_all
from weft.wire.octets import from_octets, to_octets


class Exact(NamedTuple):
    """Download of a round in full precision; its type says so."""

    model: Tree


class Bits(NamedTuple):
    """Download of the second exchange."""

    bits: Tree


class Ring(NamedTuple):
    """Server state, where `bits` is the last merge; upload, where `model` is without weights if there are bits."""

    model: Tree
    bits: Tree


def merged(signs: Tensor, weights: Tensor, segment: Tensor, key: Tensor) -> Tensor:
    """One round of the ring: bool [clients, n] -> bool [n]; `segment` is the client at which each entry starts."""
    clients = len(weights)
    bits, passed = signs.gather(0, segment[None])[0], weights[segment]
    for hop in range(1, clients):
        here = (segment + hop) % clients
        own, weight = signs.gather(0, here[None])[0], weights[here]
        stays = uniform(fold(key, hop), bits.shape, weights.dtype) * (passed + weight) < passed
        bits, passed = torch.where(stays, bits, own), passed + weight
    return bits


@method(
    "Marsit",
    "compression",
    neutral=("fedavg", {}, {"every": 1}),
    reaches_optimum=False,
    exempt={"names": "the ring goes round in the order of the clients' numbers; what it expects does not depend on it"},
)
def marsit(opt: Optimiser = SGD(0.05), eta_s: float = 0.001, every: int = 100) -> Method:
    """Marsit. opt: the local optimiser; eta_s: size of a step by signs; every: K, rounds between exact ones."""
    if every < 1:
        raise SettingError(f"every = {every} is no number of rounds: use 1 or more, such as 100")

    def exact(r: Round) -> bool:
        return (r.number - 1) % every == 0

    def step(bits: Tree, like: Tree) -> Tree:
        return {k: eta_s * (2 * from_octets(b, like[k].shape).to(like[k].dtype) - 1) for k, b in bits.items()}

    def work(net: Net, task: Task[Any, Tree]) -> Reply[Ring, Tree]:
        got = task.down.model
        change = delta(descend(net, got, task.data, net.loss, opt).params, got)
        g = sub(task.mine, net.learnable(change))
        if isinstance(task.down, Exact):
            return Reply(Ring({**change, **scale(g, -1)}, {}), g, task.data.count)
        carried = {k: v for k, v in change.items() if k not in g}
        return Reply(Ring(carried, each(lambda v: to_octets(v >= 0), g)), g, task.data.count)

    def advance(state: Ring, up: Ring, r: Round) -> Ring:
        model = {**state.model, **add(up.model, state.model)}
        if not up.bits:
            return state._replace(model=model)
        assert r.weights is not None
        weights = r.net.learnable(state.model)
        total, start, bits = sum(v.numel() for v in weights.values()), 0, {}
        key = fold(fold(torch.tensor(r.seed), code("marsit")), r.number).to(r.weights.device)
        for k, v in weights.items():
            place = torch.arange(start, start + v.numel(), device=v.device)
            signs = torch.stack([from_octets(o, (v.numel(),)) for o in up.bits[k]])
            bits[k] = to_octets(merged(signs, r.weights, place * len(r.ids) // total, fold(key, start)))
            start += v.numel()
        return Ring({**model, **sub(weights, step(bits, weights))}, bits)

    def settle(net: Net, task: Task[Any, Tree]) -> Reply[Nothing, Tree]:
        g = task.mine
        c = zeros(g) if isinstance(task.down, Exact) else sub(g, step(task.down.bits, g))
        return Reply(Nothing(), c, task.data.count)

    first = replace(
        fedavg(opt),
        server=lambda net, w: Ring(w, each(lambda v: to_octets(v < v), net.learnable(w))),
        client=lambda net, w: zeros(net.learnable(w)),
        send=lambda state, r: Exact(state.model) if exact(r) else Model(state.model),
        work=work,
        advance=advance,
        up={"model": Channel(), "bits": Channel(reduce=keep_all)},
    )
    second = replace(
        first,
        send=lambda state, r: Exact({}) if exact(r) else Bits(state.bits),
        work=settle,
        advance=lambda state, up, r: state,
        up={},
        phases=dict[str, Phase](),
    )
    return replace(first, next=second)
