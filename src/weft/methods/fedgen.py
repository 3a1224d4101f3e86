"""FedGen: the server learns to generate features that all clients' heads recognise, and their heads train on them.

Paper
    Zhu, Hong, Zhou: "Data-Free Knowledge Distillation for Heterogeneous Federated Learning", ICML 2021, arXiv
    2105.10056.
What it changes
    Beside the model a client receives a generator G of features, and its loss gains the cross-entropy of its head on
    generated ones.
Algorithm
    loss = CE(x, y) + weight * CE(h(G(yhat, eps)), yhat), with as many yhat ~ phat and eps ~ N(0, I) as there are
    examples in the batch; G frozen and judging, so that the second term trains the head h alone. w <- plain mean of
    w_k; phat: counts of the classes of the round's clients. Server, after each round: steps of Adam on G for CE(mean_k
    h_k(G(y, eps)), y) + diversity * exp(-mean over pairs of |eps - eps'|^2 |z - z'|), both distances means over
    entries.
Defaults
    weight = 1 as in the paper; noise of 32, 256 hidden units, 50 steps on 32 labels in a round, Adam with rate 3e-4 and
    weight decay 0.01, diversity = 1, as in the authors' code. eta = 0.05 (theirs: 0.01).
Deviations
    The ensemble is the mean of logits, as in the paper; the authors' code sums the losses of all heads, weighted by
    class. Its other additions are left out: a divergence on features of the true classes, uniform noise, the rate of G
    decayed, generated features in the first 20 steps only; but `decay` is there (theirs: weight = 10, decay = 0.98,
    at least 1e-4). In the first round phat is not known and the term is off. Nothing before a batch norm of G has a
    bias. Running statistics of the model take the mean weighted by n_k. The counts tell the server which classes
    clients have.
Neutral
    weight = 0 is FedAvg with equal weights.
Promise
    None: it needs classes and a head, which quadratics have not.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import grad, vmap

from weft.core import Batch, Channel, Fit, Method, Net, Reply, Round, Task, Tree, method
from weft.core.errors import SettingError
from weft.core.net import masked_mean as live_mean
from weft.core.stream import code, fold
from weft.core.tree import add, delta
from weft.local import SGD, Adam, Optimiser, descend
from weft.local.classes import class_counts
from weft.local.noise import choices, normal
from weft.methods.fedavg import fedavg
from weft.server import keep_all, mean, plain, total


class Teacher(NamedTuple):
    """Server state."""

    model: Tree
    generator: Tree
    counts: Tree  # of examples by class, in the last round
    memory: Any  # of the generator's optimiser


class Lesson(NamedTuple):
    """Download."""

    model: Tree
    generator: Tree
    prior: Tree  # counts by class, and the weight of the generated term


class Seen(NamedTuple):
    """Upload."""

    model: Tree
    counts: Tree


@cache
def generator(classes: int, width: int, noise: int, hidden: int, dtype: torch.dtype) -> Net:
    """(noise, one-hot class) -> features, as the logits of a net of its own; cached, so that it is traced once."""

    def build() -> nn.Module:
        first, norm = nn.Linear(noise + classes, hidden, bias=False), nn.BatchNorm1d(hidden)
        return nn.Sequential(first, norm, nn.ReLU(), nn.Linear(hidden, width))

    return Net.from_module(build, dtype=dtype)


def alike(noise: Tensor, z: Tensor) -> Tensor:
    """In (0, 1]: 1 where different noise [n, ...] gives equal features [n, width]."""
    apart = ((noise[:, None] - noise) ** 2).mean(2) * (z[:, None] - z).abs().mean(2)
    return torch.exp(-apart.mean())


@method("FedGen", "distillation", off={"weight": 0.0})
def fedgen(
    opt: Optimiser = SGD(0.05),
    weight: float = 1.0,
    decay: float = 1.0,
    noise: int = 32,
    hidden: int = 256,
    generator_opt: Optimiser = Adam(3e-4, weight_decay=0.01),
    steps: int = 50,
    labels: int = 32,
    diversity: float = 1.0,
) -> Method:
    """FedGen. opt: the local optimiser; weight, decay: of the generated term, and its factor per round.

    noise, hidden: sizes of the generator; generator_opt, steps, labels: how it learns in a round, on how many labels in
    a step; diversity: weight of that term.
    """

    def maker(net: Net, like: Tree) -> Net:
        if not net.classes or not net.width:
            raise SettingError("fedgen generates the input of a head, which this network has not: use one with a head")
        return generator(net.classes, net.width, noise, hidden, next(iter(like.values())).dtype)

    def pairs(key: Tensor, counts: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
        """(labels, noise, what the generator takes)."""
        y = choices(fold(key, code("labels")), counts, count)
        eps = normal(fold(key, code("noise")), (count, noise), counts.dtype)
        return y, eps, torch.cat([eps, (y[:, None] == torch.arange(len(counts), device=y.device)).to(eps.dtype)], 1)

    def server(net: Net, first: Tree) -> Teacher:
        gen, like = maker(net, first), next(iter(first.values()))
        tree = {k: v.to(like.device) for k, v in gen.init(0).items()}
        counts = {"classes": like.new_zeros(net.classes)}
        return Teacher(first, tree, counts, generator_opt.init(gen.learnable(tree)))

    def client(net: Net, first: Tree) -> tuple[()]:
        maker(net, first)  # before the first turn: building draws random numbers, which may not be done inside one
        return ()

    def send(state: Teacher, r: Round) -> Lesson:
        counts = state.counts["classes"]
        now = min(weight, max(1e-4, weight * decay ** (r.number - 1)))
        return Lesson(state.model, state.generator, {"counts": counts, "weight": now * (counts.sum() > 0).to(counts)})

    def work(net: Net, task: Task[Lesson, tuple[()]]) -> Reply[Seen, tuple[()]]:
        got, gen = task.down.model, maker(net, task.down.model)

        def loss(w: Tree, batch: Batch, tree: Tree, prior: Tree) -> Fit:
            value, buffers = net.loss(w, batch)
            y, _, inputs = pairs(batch.key, prior["counts"], len(batch.live))
            said = net.criterion(net.head(w, gen.apply(tree, inputs).logits), y)
            return Fit(value + prior["weight"] * live_mean(said, batch.live), buffers)

        local = descend(net, got, task.data, loss, opt, given=(task.down.generator, task.down.prior)).params
        counts = {"classes": class_counts(net, task.data)}
        return Reply(Seen(delta(local, got), counts), (), task.data.count)

    def advance(state: Teacher, up: Seen, r: Round) -> Teacher:
        net, gen, counts = r.net, maker(r.net, state.model), up.counts["classes"]
        assert r.weights is not None
        weighted, step = mean(up.model, r.weights), plain(up.model, r.weights)
        step = {k: weighted[k] if k in net.buffers else v for k, v in step.items()}
        heads = {k: state.model[k] + v for k, v in up.model.items() if "head" in net.roles[k]}
        key = fold(fold(torch.tensor(r.seed, device=counts.device), code("fedgen")), r.number)

        def objective(p: Tree, tree: Tree, t: int) -> tuple[Tensor, Tree]:
            y, eps, inputs = pairs(fold(key, t), counts, labels)
            drawn = Batch(inputs, y, torch.ones_like(eps[:, 0]), key, key)
            made, buffers = gen.train({**tree, **p}, drawn)
            said = vmap(net.head, (0, None))(heads, made.logits).mean(0)
            return net.criterion(said, y).mean() + diversity * alike(eps, made.logits), buffers

        tree, memory, rate = state.generator, state.memory, torch.ones_like(counts[0])
        for t in range(steps):
            p = gen.learnable(tree)
            g, buffers = grad(objective, has_aux=True)(p, tree, t)
            change, memory = generator_opt.update(g, memory, p, rate)
            tree = {**tree, **add(p, change), **buffers}
        return Teacher(add(state.model, step), tree, up.counts, memory)

    return replace(
        fedavg(opt),
        server=server,
        client=client,
        send=send,
        work=work,
        advance=advance,
        up={"model": Channel(reduce=keep_all), "counts": Channel(reduce=total)},
    )
