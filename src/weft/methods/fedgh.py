"""FedGH: clients send the mean feature of each class, and the server trains on them one head for all architectures.

Paper
    Yi, Wang, Liu, Shi, Yu: "FedGH: Heterogeneous Federated Learning with Generalized Global Header", ACM Multimedia
    2023, arXiv 2303.13137.
What it changes
    Models stay at home, and what is common is a head that the server trains; the locally trained head is thrown away.
Algorithm
    With the received head h, E epochs of SGD on extractor and head; r_k^c = mean feature of the client's examples of
    class c. Server: h <- h - eta_s * gradient of CE(h(r), c) over batches of the pairs (r_k^c, c) of this round. Client
    k answers with its extractor under the present h.
Defaults
    eta_s = 0.01, one pass in batches of 10, as in the libraries' scripts; eta = 0.05 (theirs: 0.01).
Deviations
    Pairs come in the order of clients and classes; libraries shuffle them, the paper takes one client after the other.
    Features are judged after training. A message has a row for every class: those of classes that a client does not
    have are zeros and are left out. In some public code one client's own head is the server's: here it is a copy. A
    client that had no turn answers with the initial extractor.
Neutral
    With eta_s = 0 the head is a constant, to which every turn returns.
Promise
    None: there is no common model.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch.func import grad

from weft.core import Channel, Method, Net, Predict, Reply, Round, Task, Tree, View, method
from weft.core.errors import SettingError
from weft.core.select import role
from weft.core.tree import add, scale
from weft.local import SGD, Optimiser, descend
from weft.local.classes import class_sums
from weft.server import keep_all


class Header(NamedTuple):
    """Server state and download."""

    head: Tree


class Prototypes(NamedTuple):
    """Upload: mean [classes, width] and seen [classes]."""

    protos: Tree


def under(net: Net, own: Tree, head: Tree) -> Tree:
    """The client's extractor under the received head, whose entries may have other names in its architecture."""
    names = [k for k, roles in net.roles.items() if "head" in roles]
    return {**own, **dict(zip(names, head.values(), strict=True))}


@method("FedGH", "prototype", mixed=True, off={"eta_s": 0.0})
def fedgh(opt: Optimiser = SGD(0.05), eta_s: float = 0.01, server_epochs: int = 1, server_batch: int = 10) -> Method:
    """FedGH. opt: the local optimiser; eta_s: rate of the server; server_epochs, server_batch: passes, batches."""
    if server_batch < 1:
        raise SettingError(f"server_batch = {server_batch} makes no batch: use 1 or more, such as 10")

    def work(net: Net, task: Task[Header, Tree]) -> Reply[Prototypes, Tree]:
        wide = (net.common or net).width
        if net.width != wide:
            raise SettingError(
                f"fedgh has one head for all, and the features are {wide} and {net.width} wide: use equal"
            )
        trained = descend(net, under(net, task.mine, task.down.head), task.data, net.loss, opt).params
        total, count = class_sums(net, trained, task.data)
        up = {"mean": total / count.clamp(min=1)[:, None], "seen": count.clamp(max=1)}
        return Reply(Prototypes(up), net.split(trained, ~role("head"))[0], task.data.count)

    def advance(state: Header, up: Prototypes, r: Round) -> Header:
        head, (client, label) = state.head, torch.nonzero(up.protos["seen"], as_tuple=True)
        features = up.protos["mean"][client, label]
        for _ in range(server_epochs if len(label) else 0):
            for x, y in zip(torch.split(features, server_batch), torch.split(label, server_batch), strict=True):
                g = grad(lambda h, x=x, y=y: r.net.criterion(r.net.head(h, x), y).mean())(head)
                head = add(head, scale(g, -eta_s))
        return Header(head)

    def view(net: Net, task: Task[Header, Tree]) -> Predict:
        return lambda x: net.apply(under(net, task.mine, task.down.head), x).logits

    return Method(
        "fedgh",
        server=lambda net, first: Header(net.split(first, role("head"))[0]),
        client=lambda net, first: net.split(first, ~role("head"))[0],
        send=lambda state, r: state,
        work=work,
        advance=advance,
        views={"personal": View(view)},
        up={"protos": Channel(reduce=keep_all)},
    )
