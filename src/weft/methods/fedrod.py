"""FedRoD: a class-balanced body and head are averaged; a private head on top of them adds what a client knows better.

Paper
    Chen, Chao: "On Bridging Generic and Personalized Federated Learning for Image Classification", ICLR 2022, arXiv
    2107.00778.
What it changes
    The averaged model minimises a balanced loss, so that clients pursue nearly one aim; beside it every client keeps a
    personal head that minimises the plain loss.
Algorithm
    z: features; G, P: the averaged and the private head; n_k: client k's examples of each class. Loss of body and G:
    CE(G(z) + gamma log n_k, y). Loss of P: CE(G(z) + P(z), y), with z and G(z) of the same pass as constants. w <-
    sum_k n_k / n * w_k. Client k answers with G(z) + P(z), the common view with G(z).
Defaults
    gamma = 1, as in the paper; P has the optimiser of the model. eta = 0.05 (paper: 0.01).
Deviations
    P is linear and starts at 0; the paper's other variant makes its weights by a shared hypernetwork. Absent classes
    leave the softmax by a large negative number, where the paper has log 0. Counts are of all training examples; public
    code counts batches without the last. A client that had no turn answers as the common model.
Neutral
    gamma = 0 trains the model as FedAvg.
Promise
    None that quadratics can show: the private head stands on features, which they have not.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.func import grad

from weft.core import Batch, Method, Model, Net, Predict, Reply, Task, Tree, View, method
from weft.core.net import masked_mean
from weft.core.select import role
from weft.core.tree import add, delta, zeros
from weft.local import SGD, Optimiser, scan
from weft.local.classes import class_counts
from weft.methods.fedavg import fedavg, global_view

ABSENT = -1e9  # in place of log 0, which padding would turn into NaN


@method("FedRoD", "personalised", neutral=("fedavg", {}, {"gamma": 0.0}))
def fedrod(opt: Optimiser = SGD(0.05), gamma: float = 1.0, personal: Optimiser | None = None) -> Method:
    """FedRoD. opt: the local optimiser; gamma: exponent of the counts; personal: the private head's optimiser."""
    solvers = (opt, personal or opt)

    def work(net: Net, task: Task[Model, Tree]) -> Reply[Model, Tree]:
        got, n = task.down.model, class_counts(net, task.data)
        prior = gamma * torch.where(n > 0, n.clamp(min=1).log(), ABSENT)

        def objective(p: Tree, head: Tree, w: Tree, batch: Batch, prior: Tensor) -> tuple[Tensor, Tree]:
            out, buffers = net.train({**w, **p}, batch)
            joint = out.logits.detach() + net.head(head, out.features.detach())
            value = net.criterion(out.logits + prior, batch.y) + net.criterion(joint, batch.y)
            return masked_mean(value, batch.live), buffers

        def step(carry: Any, batch: Batch, prior: Tensor, rate: Tensor) -> Any:
            w, head, states = carry
            parts = (net.learnable(w), head)
            grads, buffers = grad(objective, argnums=(0, 1), has_aux=True)(*parts, w, batch, prior)
            moves = [o.update(g, s, t, rate) for o, g, s, t in zip(solvers, grads, states, parts, strict=True)]
            (p, head), states = map(add, parts, [m for m, _ in moves]), [s for _, s in moves]
            return {**w, **p, **buffers}, head, states

        states = [o.init(t) for o, t in zip(solvers, (net.learnable(got), task.mine), strict=True)]
        w, head, _ = scan(step, (got, task.mine, states), task.data, given=(prior, task.data.rate))
        return Reply(Model(delta(w, got)), head, task.data.count)

    def view(net: Net, task: Task[Model, Tree]) -> Predict:
        def predict(x: Tensor) -> Tensor:
            out = net.apply(task.down.model, x)
            return out.logits + net.head(task.mine, out.features)

        return predict

    return replace(
        fedavg(opt),
        client=lambda net, first: zeros(net.split(first, role("head"))[0]),
        work=work,
        views={"global": View(global_view, shared=True), "personal": View(view)},
    )
