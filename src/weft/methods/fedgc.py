"""FedGC: each client knows the embeddings of its own classes only; the server pushes those of other clients away.

Paper
    Niu, Deng: "Federated Learning for Face Recognition with Gradient Correction", AAAI 2022, arXiv 2112.07246.
What it changes
    The head has no bias, and its rows are private: only the body theta is averaged. The server holds all rows, and adds
    the gradient between classes of different clients that no client can compute.
Algorithm
    Client k: E epochs of SGD on theta and W_k, softmax over its own classes; theta <- sum_k n_k / n * theta_k. Server,
    over the rows of all clients: one step of rate lambda * eta on the sum over rows w_kc of -log(exp(e_c.e_c) /
    (exp(e_c.e_c) + sum over clients z without class c and their rows j of exp(w_zj.e_c))), with e_c constant: the mean
    of the rows of class c, where classes are disjoint w_kc itself.
Defaults
    lambda = 1, as in public code; no value of the paper is known to us. eta = 0.05 (public code: 0.005).
Deviations
    The paper has disjoint classes: e_c and the clients without c are public code's extension to shared ones. The local
    loss is the plain softmax, without angular margins. A message has a row for every class: those that a client does
    not have are zeros. Rows of absent clients take part and are moved, from their first message on. A class that a
    client has no training example of counts as an error, and its accuracy over few classes is no C-way accuracy. A
    client that had no turn answers with the initial rows of its classes.
Neutral
    lambda = 0 averages the body under private heads.
Promise
    None about a common model: the common body has no head.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from weft.core import Batch, Channel, Fit, Method, Net, Predict, Reply, Round, Task, Tree, View, method
from weft.core.errors import SettingError
from weft.core.net import masked_mean
from weft.core.select import role
from weft.core.tree import add, delta
from weft.local import SGD, Optimiser, descend
from weft.local.classes import class_counts
from weft.methods.fedavg import fedavg
from weft.server import keep_all, rows

OUT = -1e9  # instead of minus infinity, which padding would turn into NaN


class Embeddings(NamedTuple):
    """Server state, download and upload. The server has a row of `own` for each client."""

    model: Tree  # the body
    own: Tree  # weight [classes, width]; to the server also classes [classes]: 1 where the client has examples


def correction(weight: Tensor, has: Tensor) -> Tensor:
    """Gradient of the regulariser: weight [clients, classes, width], has [clients, classes]."""
    owners = has.sum(0)
    e = (has[..., None] * weight).sum(0) / owners.clamp(min=1)[:, None]
    foreign = (has[:, :, None] * (1 - has)[:, None, :]) > 0  # row j of client z against class c
    scores = torch.where(foreign, weight @ e.T, -torch.inf)
    own = (e * e).sum(1)
    top = torch.logaddexp(scores.flatten(0, 1).logsumexp(0), own)
    return (owners * torch.exp(scores - top)) @ e


@method("FedGC", "personalised", off={"lam": 0.0})
def fedgc(opt: Optimiser = SGD(0.05), lam: float = 1.0) -> Method:
    """FedGC. opt: the local optimiser; lam: rate of the server's step in units of the local rate."""

    def whole(net: Net, body: Tree, weight: Tensor) -> Tree:
        head = [k for k, roles in net.roles.items() if "head" in roles]
        if len(head) > 2 or weight.shape != (net.classes, net.width):
            raise SettingError("fedgc needs a linear head, whose rows are embeddings of classes: use such a network")
        return {**body, head[0]: weight, **{k: weight.new_zeros(net.classes) for k in head[1:]}}

    def work(net: Net, task: Task[Embeddings, tuple[()]]) -> Reply[Embeddings, tuple[()]]:
        body, weight, has = task.down.model, task.down.own["weight"], class_counts(net, task.data).clamp(max=1)

        def loss(w: Embeddings, batch: Batch, has: Tensor) -> Fit:
            out, buffers = net.train(whole(net, w.model, w.own["weight"]), batch)
            value = net.criterion(torch.where(has > 0, out.logits, OUT), batch.y)
            return Fit(masked_mean(value, batch.live), Embeddings(buffers, {}))

        local = descend(net, Embeddings(body, {"weight": weight}), task.data, loss, opt, given=(has,)).params
        own = {"weight": local.own["weight"] * has[:, None], "classes": has}
        return Reply(Embeddings(delta(local.model, body), own), (), task.data.count)

    def send(state: Embeddings, r: Round) -> Embeddings:
        own = rows.at({"weight": state.own["weight"]}, r)
        return Embeddings({k: v.expand(len(r.ids), *v.shape) for k, v in state.model.items()}, own)

    def advance(state: Embeddings, up: Embeddings, r: Round) -> Embeddings:
        own = rows.put(state.own, r, up.own)
        step = lam * opt.lr * r.rate * correction(own["weight"], own["classes"])
        return Embeddings(add(state.model, up.model), {**own, "weight": own["weight"] - step})

    def server(net: Net, first: Tree) -> Embeddings:
        head, body = net.split(first, role("head"))
        weight = next(iter(head.values()))
        return Embeddings(body, rows.alike({"weight": weight, "classes": weight.new_zeros(len(weight))}))

    def view(net: Net, task: Task[Embeddings, tuple[()]]) -> Predict:
        has = class_counts(net, task.data) > 0
        tree = whole(net, task.down.model, task.down.own["weight"])
        return lambda x: torch.where(has, net.apply(tree, x).logits, OUT)

    return replace(
        fedavg(opt),
        server=server,
        send=send,
        private_send=True,
        work=work,
        advance=advance,
        views={"personal": View(view)},
        up={"model": Channel(), "own": Channel(reduce=keep_all)},
    )
