"""GPFL: a conditional valve makes common and personal features of one, guided by embeddings of classes that all train.

Paper
    Zhang, Hua, Wang, Song, Xue, Ma, Cao, Guan: "GPFL: Simultaneously Learning Global and Personalized Feature
    Information for Personalized Federated Learning", ICCV 2023, arXiv 2308.10279.
What it changes
    Between extractor and private head stands a valve V; extractor, V and a table C of class embeddings are averaged.
Algorithm
    C' = C as received; g = mean of the rows of C'; p_k = the mean of its rows, each times the client's share of that
    class. f^G = ReLU((gamma(g) + 1) f + beta(g)), f^P alike with p_k; gamma and beta are LayerNorm(ReLU(Linear)). Loss:
    CE(head(f^P), y) + CE(cos(f^G, C), y) + lambda ||f^G - C'_y|| + mu/2 (||V||^2 + ||C||^2). SGD on all at once, then
    means of all but the head, weighted by n_k. Client k answers with head(f^P).
Defaults
    lambda = 0.01 and mu = 0.1, the authors' for the 4-layer CNN and the MLP; eta = 0.05 (theirs: 0.005).
Deviations
    g and p_k come from the table received, as in the paper; the authors' code takes the client's former one. p_k is a
    mean over classes; `p_scale="code"` leaves out the division by their number. ||f^G - C'_y|| is one norm over the
    whole batch, as in the code to which lambda = 0.01 belongs; `magnitude="example"` takes the mean of the examples'
    norms, as the paper writes. mu is a weight decay of V and C, as in the code; the paper adds norms. A client that had
    no turn answers with the initial head.
Neutral
    None: the valve is there at every setting.
Promise
    None about a common model: heads are private.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from weft.core import Batch, Channel, Fit, Method, Net, Predict, Reply, Round, Task, Tree, View, method
from weft.core.errors import SettingError
from weft.core.net import masked_mean
from weft.core.select import role
from weft.core.tree import add, delta, sq_norm
from weft.local import SGD, Optimiser, descend
from weft.local.classes import class_counts
from weft.local.parts import key, linear, normal, normed, project, under
from weft.methods.fedavg import personal_layers


class Guided(NamedTuple):
    """Server state, download and upload."""

    model: Tree  # the extractor
    valve: Tree
    table: Tree  # weight [classes, width]


class Trained(NamedTuple):
    """What one step moves."""

    shared: Guided
    head: Tree


def routed(valve: Tree, f: Tensor, condition: Tensor) -> Tensor:
    """The features as the valve lets them through under a condition [width]."""
    gamma, beta = (normed(valve, n, torch.relu(project(valve, n, condition))) for n in ("gamma", "beta"))
    return torch.relu((gamma + 1) * f + beta)


@method("GPFL", "personalised", off={"mu": 0.0})
def gpfl(
    opt: Optimiser = SGD(0.05),
    lam: float = 0.01,
    mu: float = 0.1,
    p_scale: Literal["paper", "code"] = "paper",
    magnitude: Literal["batch", "example"] = "batch",
) -> Method:
    """GPFL. opt: the local optimiser; lam: pull to the received embeddings; mu: decay of valve and table.

    p_scale: whether personal conditions are divided by the number of classes; magnitude: one norm for a batch, or one
    for each example.
    """
    if p_scale not in ("paper", "code") or magnitude not in ("batch", "example"):
        raise SettingError(
            f"p_scale = {p_scale!r}, magnitude = {magnitude!r}: use 'paper' or 'code', and 'batch' or 'example'"
        )

    def personal(net: Net, task: Task[Guided, Tree]) -> Tensor:
        share = class_counts(net, task.data) / task.data.count.clamp(min=1)
        return share @ task.down.table["weight"] / (net.classes if p_scale == "paper" else 1)

    def work(net: Net, task: Task[Guided, Tree]) -> Reply[Guided, Tree]:
        got = task.down

        def loss(w: Trained, batch: Batch, fixed: Tensor, p: Tensor) -> Fit:
            (body, valve, table), head = w
            out, buffers = net.train({**body, **head}, batch)
            common, own = (routed(valve, out.features, c) for c in (fixed.mean(0), p))
            cosines = F.normalize(common, dim=1) @ F.normalize(table["weight"], dim=1).T
            value = net.criterion(net.head(head, own), batch.y) + net.criterion(cosines, batch.y)
            square = ((common - fixed[batch.y]) ** 2).sum(1)
            if magnitude == "batch":
                far = ((square * batch.live).sum() + 1e-12).sqrt()
            else:
                far = masked_mean((square + 1e-12).sqrt(), batch.live)
            total = masked_mean(value, batch.live) + lam * far + mu / 2 * (sq_norm(valve) + sq_norm(table))
            return Fit(total, Trained(Guided(buffers, {}, {}), {}))

        given = (got.table["weight"], personal(net, task))
        new, head = descend(net, Trained(got, task.mine), task.data, loss, opt, given=given).params
        return Reply(Guided(*map(delta, new, got)), head, task.data.count)

    def view(net: Net, task: Task[Guided, Tree]) -> Predict:
        (body, valve, _), head, p = task.down, task.mine, personal(net, task)
        return lambda x: net.head(head, routed(valve, net.apply({**body, **head}, x).features, p))

    def server(net: Net, first: Tree) -> Guided:
        like, k = next(iter(first.values())), net.width
        valve = {n: linear(key(first, n), k, k, like) for n in ("gamma", "beta")}
        table = normal(key(first, "table"), (net.classes, k), like)
        body = net.split(first, ~role("head"))[0]
        return Guided(body, {**under("gamma", valve["gamma"]), **under("beta", valve["beta"])}, {"weight": table})

    def advance(state: Guided, up: Guided, r: Round) -> Guided:
        return Guided(*map(add, state, up))

    return personal_layers(
        role("head"),
        opt,
        server=server,
        work=work,
        advance=advance,
        views={"personal": View(view)},
        up={"model": Channel(), "valve": Channel(), "table": Channel()},
    )
