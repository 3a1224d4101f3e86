"""FedCP: a small policy decides, for each example and feature, how much the common and the personal head see of it.

Paper
    Zhang, Hua, Wang, Song, Xue, Ma, Guan: "FedCP: Separating Feature Information for Personalized Federated Learning
    via Conditional Policy", KDD 2023, arXiv 2307.01217.
What it changes
    Features h are split into s h for a personal head that is never overwritten and r h for the received head, frozen;
    s + r = 1 come from a policy network that is averaged too.
Algorithm
    q = h v / ||v||, v = sum of the rows of the personal head at the start of the turn; (s, r) = softmax over two of
    ReLU(LayerNorm(Linear(q))). Loss: CE(personal(s h) + received(r h), y) + lambda MMD(h, h_0), h_0 the features of the
    received extractor; MMD with the sum of exp(-d^2 / 2a) for a = 10, 15, 20, 50. SGD on extractor, personal head and
    policy at once. Sent: extractor, policy and the mean of personal and received head; all averaged by n_k.
Defaults
    lambda = 5 with eta = 0.005, the authors' pair for the 4-layer CNN.
Deviations
    The mask is the paper's softmax; `policy="gumbel"` adds the noise of the authors' code, in answers too. All clients
    of a round receive all three parts, as in the paper. h_0 comes from a training pass that leaves no trace, so that it
    is h in the first step. Very long features have an MMD without gradient. A client that had no turn takes the
    received head for its personal one.
Neutral
    None: even with lambda = 0 the policy splits features.
Promise
    None about a common model: what answers are two heads.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from weft.core import Batch, Channel, Fit, Method, Net, Predict, Reply, Round, Task, Tree, View, method
from weft.core.errors import SettingError
from weft.core.net import masked_mean
from weft.core.select import role
from weft.core.stream import fold, uniform
from weft.core.tree import add, delta, scale, where
from weft.local import SGD, Optimiser, descend
from weft.local.mmd import mmd
from weft.local.parts import key, linear, normed, project, under
from weft.methods.fedavg import fedavg


class Shared(NamedTuple):
    """Server state, download and upload."""

    model: Tree  # extractor and head
    policy: Tree


class Trained(NamedTuple):
    """What one step moves."""

    body: Tree
    head: Tree
    policy: Tree


def kernel(d: Tensor) -> Tensor:
    """Four Gaussian kernels of squared distances, summed."""
    return sum((torch.exp(-d / (2 * a)) for a in (10, 15, 20, 50)), torch.zeros_like(d))


@method("FedCP", "personalised", off={"lam": 0.0}, exempt={"blend": "FedCP sends half the change of its head"})
def fedcp(opt: Optimiser = SGD(0.005), lam: float = 5.0, policy: Literal["softmax", "gumbel"] = "softmax") -> Method:
    """FedCP. opt: the local optimiser; lam: weight of the MMD; policy: softmax, or with noise as in the code."""
    if policy not in ("softmax", "gumbel"):
        raise SettingError(f"policy = {policy!r} is no way to draw a mask: use 'softmax' or 'gumbel'")

    def direction(net: Net, head: Tree) -> Tensor:
        v = next(x for x in head.values() if x.ndim == 2).sum(0)
        unit: Tensor = v / v.norm()
        return unit

    def logits(net: Net, tree: Trained, got: Tree, v: Tensor, h: Tensor, noise: Tensor) -> Tensor:
        a = torch.relu(normed(tree.policy, "policy", project(tree.policy, "policy", h * v)))
        a = a.reshape(*h.shape[:-1], 2, -1)
        if policy == "gumbel":
            a = a - torch.log(-torch.log(uniform(fold(noise, 1), a.shape, a.dtype).clamp(min=2**-25)))
        s, r = a.softmax(-2).unbind(-2)
        return net.head(tree.head, s * h) + net.head(got, r * h)

    def parts(net: Net, task: Task[Shared, Tree]) -> Trained:
        head, body = net.split(task.down.model, role("head"))
        return Trained(body, where(task.data.past > 0, task.mine, head), task.down.policy)

    def work(net: Net, task: Task[Shared, Tree]) -> Reply[Shared, Tree]:
        got, start = task.down.model, parts(net, task)

        def loss(w: Trained, batch: Batch, got: Tree, v: Tensor) -> Fit:
            out, buffers = net.train({**w.body, **w.head}, batch)
            h, first = out.features, net.train(got, batch)[0].features
            value = net.criterion(logits(net, w, got, v, h, batch.key), batch.y)
            total = masked_mean(value, batch.live) + lam * mmd(h, first, batch.live, kernel)
            return Fit(total, Trained(buffers, {}, {}))

        given = (got, direction(net, start.head))
        body, head, rules = descend(net, start, task.data, loss, opt, given=given).params
        half = scale(delta(head, {k: got[k] for k in head}), 0.5)
        change = {k: half[k] if k in half else body[k] - x for k, x in got.items()}
        return Reply(Shared(change, delta(rules, start.policy)), head, task.data.count)

    def view(net: Net, task: Task[Shared, Tree]) -> Predict:
        got, own = task.down.model, parts(net, task)
        v = direction(net, own.head)
        return lambda x: logits(net, own, got, v, net.apply(got, x).features, task.data.turn.key)

    def server(net: Net, first: Tree) -> Shared:
        rules = linear(key(first, "policy"), 2 * net.width, net.width, next(iter(first.values())))
        return Shared(first, under("policy", rules))

    def advance(state: Shared, up: Shared, r: Round) -> Shared:
        return Shared(add(state.model, up.model), add(state.policy, up.policy))

    return replace(
        fedavg(opt),
        server=server,
        client=lambda net, first: net.split(first, role("head"))[0],
        work=work,
        advance=advance,
        views={"personal": View(view)},
        up={"model": Channel(), "policy": Channel()},
    )
