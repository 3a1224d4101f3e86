"""FedPCL: clients share mean embeddings of each class, and contrast examples with everybody's, not with labels.

Paper
    Tan, Long, Ma, Liu, Zhou, Jiang: "Federated Learning from Pre-Trained Models: A Contrastive Learning Approach",
    NeurIPS 2022, arXiv 2209.10083.
What it changes
    No model is sent; the loss is a contrast of embeddings with prototypes of all classes, global and of every client.
Algorithm
    z = output of the head over its norm: the head is the projection network, what is below it the backbones. With
    cosines to prototypes over tau as logits, loss = CE against the global prototypes + mean over clients k of CE
    against the prototypes of k, classes that k does not own filled with the global ones. Afterwards C_i^c = mean z of
    class c; global C^c = mean of C_k^c over all clients k that own c. A client answers with the nearest of its own.
Defaults
    tau = 0.07, Adam with rate 0.001 and weight decay 1e-4, as in the authors' code. train = everything, since networks
    by name are not pre-trained; the paper's setting is train = head, with a `Net` of pre-trained backbones.
Deviations
    The authors' code contrasts prototypes with the examples of a batch, in two augmented views, against local sets
    alone. Prototypes are scaled to length 1 before they are compared (not confirmed). The server keeps the last set of
    a client that is absent; classes that nobody ever owned are left out of the softmax. While there are no prototypes
    nothing is trained. A frozen backbone judges (running statistics, no dropout); public code compares with other
    classes where labels were not met in order. A client that had no turn answers by prototypes of its own examples in
    the initial network.
Neutral
    None: without prototypes nothing is learnt.
Promise
    None: there is no common model.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from weft.core import Batch, Channel, Data, Fit, Method, Net, Predict, Reply, Round, Select, Task, Tree, View, method
from weft.core.errors import SettingError
from weft.core.net import masked_mean
from weft.core.select import everything
from weft.core.tree import where
from weft.local import Adam, Optimiser, descend
from weft.server import keep_all, rows


class Sets(NamedTuple):
    """Upload, and stacked over clients the server's state: mean [classes, width], owned [classes]."""

    protos: Tree


class Down(NamedTuple):
    """Sets [1 + clients, classes, width], the global one first; weights [1 + clients]; known [classes]."""

    protos: Tree


def prototypes(net: Net, model: Tree, data: Data) -> Tree:
    """Mean embedding of each class over the client's examples, and which classes there are."""
    whole = data.all()
    hot = (torch.arange(net.classes, device=whole.y.device)[:, None] == whole.y) * whole.live
    count, z = hot.sum(1), F.normalize(net.apply(model, whole.x).logits, dim=1)
    return {"mean": hot @ z / count.clamp(min=1)[:, None], "owned": count.clamp(max=1)}


def contrast(z: Tensor, y: Tensor, protos: Tree, tau: float) -> Tensor:
    """The loss of each example; 0 for classes without a prototype."""
    cosine = torch.einsum("bd,scd->bsc", z, F.normalize(protos["sets"], dim=2))
    log = torch.where(protos["known"] > 0, cosine / tau, -1e30).log_softmax(2)
    own = log.gather(2, y[:, None, None].expand(-1, log.shape[1], 1))[..., 0]
    return torch.where(protos["known"][y] > 0, -(own * protos["weights"]).sum(1), 0)


@method("FedPCL", "prototype", mixed=True)
def fedpcl(opt: Optimiser = Adam(0.001, weight_decay=1e-4), tau: float = 0.07, train: Select = everything) -> Method:
    """FedPCL. opt: the local optimiser; tau: temperature; train: what learns, such as the head."""
    frozen = train != everything

    def server(net: Net, first: Tree) -> Sets:
        heads = [v for k, v in first.items() if "head" in net.roles[k]]
        mean = heads[0].new_zeros(net.classes, len(heads[0]))
        return Sets(rows.alike({"mean": mean, "owned": mean.new_zeros(net.classes)}))

    def send(state: Sets, r: Round) -> Down:
        mean, owned = rows.spread(state.protos, r.population).values()
        owners, seen = owned.sum(0), owned.amax(1)
        common = (mean * owned[..., None]).sum(0) / owners.clamp(min=1)[:, None]
        padded = torch.where(owned[..., None] > 0, mean, common)
        weights = torch.cat([torch.ones_like(seen[:1]), seen / seen.sum().clamp(min=1)])
        return Down({"sets": torch.cat([common[None], padded]), "weights": weights, "known": owners.clamp(max=1)})

    def work(net: Net, task: Task[Down, Tree]) -> Reply[Sets, Tree]:
        protos = task.down.protos

        def loss(w: Tree, batch: Batch, protos: Tree) -> Fit:
            out, buffers = (net.apply(w, batch.x), {}) if frozen else net.train(w, batch)
            if out.logits.shape[-1] != protos["sets"].shape[-1]:
                widths = f"{protos['sets'].shape[-1]} and {out.logits.shape[-1]}"
                raise SettingError(f"fedpcl compares embeddings, and those of the networks have {widths}: use equal")
            z = F.normalize(out.logits, dim=1)
            return Fit(masked_mean(contrast(z, batch.y, protos, tau), batch.live), buffers)

        trained = descend(net, task.mine, task.data, loss, opt, given=(protos,), only=train).params
        local = where(protos["known"].sum() > 0, trained, task.mine)
        return Reply(Sets(prototypes(net, local, task.data)), local, task.data.count)

    def view(net: Net, task: Task[Down, Tree]) -> Predict:
        own = prototypes(net, task.mine, task.data)

        def predict(x: Tensor) -> Tensor:
            gap = F.normalize(net.apply(task.mine, x).logits, dim=1)[:, None] - own["mean"]
            return torch.where(own["owned"] > 0, -(gap**2).sum(2), -1e6)

        return predict

    return Method(
        "fedpcl",
        server=server,
        client=lambda net, first: first,
        send=send,
        work=work,
        advance=lambda state, up, r: Sets(rows.put(state.protos, r, up.protos)),
        views={"personal": View(view)},
        up={"protos": Channel(reduce=keep_all)},
    )
