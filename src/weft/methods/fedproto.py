"""FedProto: clients share the mean feature of each class, and pull their features to the mean over all clients.

Paper
    Tan, Long, Liu, Zhou, Lu, Jiang, Zhang: "FedProto: Federated Prototype Learning across Heterogeneous Clients",
    AAAI 2022, arXiv 2105.00243.
What it changes
    No model is sent: the local loss gains a term that ties the features of an example to the common prototype of its
    class.
Algorithm
    loss = CE + lam * mean over examples and dimensions of (f(x) - Cbar_y)^2, nothing for classes without a prototype.
    After training C_i^c = mean feature of the client's examples of class c. Server: Cbar_c = mean of C_i^c over the
    clients of the round that own c, weighted by their numbers of examples of c.
Defaults
    lam = 1 (the authors' value for MNIST and FEMNIST; 0.1 for CIFAR-10), SGD with rate 0.01 and momentum 0.5.
Deviations
    The penalty is on single examples, as in all code; the paper compares prototypes. Prototypes come from a pass in
    judging mode after training; the authors collect features while the weights move. The paper's equation divides by
    the number of owners once more than its mean allows: left out. `weighting="uniform"` counts all owners alike, as the
    code behind the published figures does. A class that nobody brings keeps its prototype. View `personal` takes the
    nearest of all prototypes (the authors': of the client's own classes only); view `classifier` the client's own head.
    A client that had no turn answers by the nearest prototype in the initial network.
Neutral
    lam = 0 trains every client alone.
Promise
    None: there is no common model.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from weft.core import Batch, Channel, Fit, Method, Net, Predict, Reply, Round, Task, Tree, View, method
from weft.core.errors import SettingError
from weft.core.net import masked_mean
from weft.local import SGD, Optimiser, descend
from weft.server import total


class Prototypes(NamedTuple):
    """Server state and download: mean [classes, width], known [classes]; upload: sum and count, of the same shapes."""

    protos: Tree


def nearest(net: Net, task: Task[Prototypes, Tree]) -> Predict:
    """Answer with the class of the nearest prototype."""
    table, known = task.down.protos["mean"], task.down.protos["known"]

    def predict(x: Tensor) -> Tensor:
        gap = net.apply(task.mine, x).features[:, None] - table
        return torch.where(known > 0, -(gap**2).sum(2), -1e6)

    return predict


def classifier(net: Net, task: Task[Any, Tree]) -> Predict:
    """Answer with the client's own model."""
    return lambda x: net.apply(task.mine, x).logits


@method("FedProto", "prototype", neutral=("local", {"opt": SGD(0.01, momentum=0.5)}, {"lam": 0.0}), mixed=True)
def fedproto(
    opt: Optimiser = SGD(0.01, momentum=0.5), lam: float = 1.0, weighting: Literal["examples", "uniform"] = "examples"
) -> Method:
    """FedProto. opt: the local optimiser; lam: weight of the pull; weighting: how clients count in a prototype."""

    def server(net: Net, first: Tree) -> Prototypes:
        like = next(iter(first.values()))
        return Prototypes({"mean": like.new_zeros(net.classes, net.width), "known": like.new_zeros(net.classes)})

    def work(net: Net, task: Task[Prototypes, Tree]) -> Reply[Prototypes, Tree]:
        if net.width != task.down.protos["mean"].shape[-1]:
            widths = f"{task.down.protos['mean'].shape[-1]} and {net.width}"
            raise SettingError(
                f"fedproto averages prototypes, and the models have features of widths {widths}: use equal"
            )

        def loss(w: Tree, batch: Batch, protos: Tree) -> Fit:
            out, buffers = net.train(w, batch)
            gap = ((out.features - protos["mean"][batch.y]) ** 2).mean(1) * protos["known"][batch.y]
            value = net.criterion(out.logits, batch.y) + lam * gap
            return Fit(masked_mean(value, batch.live), buffers)

        local = descend(net, task.mine, task.data, loss, opt, given=(task.down.protos,)).params
        whole = task.data.all()
        features = net.apply(local, whole.x).features
        hot = (whole.y[:, None] == torch.arange(net.classes, device=whole.y.device)) * whole.live[:, None]
        up = {"sum": hot.T @ features, "count": hot.sum(0)}
        if weighting == "uniform":
            up = {"sum": up["sum"] / up["count"].clamp(min=1)[:, None], "count": up["count"].clamp(max=1)}
        return Reply(Prototypes(up), local, task.data.count)

    def advance(state: Prototypes, up: Prototypes, r: Round) -> Prototypes:
        count, old = up.protos["count"], state.protos
        fresh = up.protos["sum"] / count.clamp(min=1)[:, None]
        return Prototypes(
            {
                "mean": torch.where(count[:, None] > 0, fresh, old["mean"]),
                "known": torch.where(count > 0, 1, old["known"]),
            }
        )

    return Method(
        "fedproto",
        server=server,
        client=lambda net, first: first,
        send=lambda state, r: state,
        work=work,
        advance=advance,
        views={"personal": View(nearest), "classifier": View(classifier)},
        up={"protos": Channel(reduce=total)},
    )
