"""FML: every client has a model of its own and a copy of a small common one; the two teach each other.

Paper
    Shen, Zhang, Jia, Zhang, Huang, Zhou, Kuang, Wu, Wu: "Federated Mutual Learning", 2020, arXiv 2006.16765.
What it changes
    Only a meme model is sent and averaged; the personal model, of any architecture, never leaves its client.
Algorithm
    From the received meme, with outputs P of the personal model and Q of the meme on the same batch: L_local = alpha
    CE_P + (1 - alpha) KL(Q || P), L_meme = beta CE_Q + (1 - beta) KL(P || Q), both stepped after both gradients are
    taken; meme <- 1/|S| sum_k meme_k.
Defaults
    alpha = beta = 0.5 and SGD with rate 0.01, momentum 0.9 and weight decay 5e-4, as in the authors' code.
Deviations
    The meme has the architecture of the server: the first that `model` names, or that of all clients. The first
    argument of a KL is a constant, as in the authors' code; in libraries each model is also moved by the other's KL.
    KL is summed over classes; libraries divide it by their number C, which is alpha = C / (C + 1) with another rate.
    Running statistics of the meme take the mean weighted by n_k. A norm to clip at holds for both gradients together.
    A client that had no turn answers with the meme.
Neutral
    alpha = beta = 1: the personal models are those of local-only training, the meme is FedAvg's with equal weights.
Promise
    None about the meme: it learns from the personal models too.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

from weft.core import Batch, Channel, Fit, Method, Model, Net, Reply, Task, Tree, View, method
from weft.core.net import masked_mean
from weft.core.tree import delta
from weft.local import SGD, Optimiser, descend
from weft.local.distil import common_view, divergence, own_answers, partner
from weft.methods.fedavg import fedavg
from weft.server import plain

PAPER = SGD(0.01, momentum=0.9, weight_decay=5e-4)


class Pair(NamedTuple):
    """The two models that learn side by side."""

    own: Tree
    meme: Tree


@method("FML", "distillation", neutral=("local", {"opt": PAPER}, {"alpha": 1.0, "beta": 1.0}), mixed=True)
def fml(opt: Optimiser = PAPER, alpha: float = 0.5, beta: float = 0.5) -> Method:
    """FML. opt: the optimiser of both models; alpha, beta: share of labels in the loss of own model and meme."""

    def work(net: Net, task: Task[Model, Tree]) -> Reply[Model, Tree]:
        small, got = partner(net), task.down.model

        def loss(pair: Pair, batch: Batch) -> Fit:
            (p, own), (q, meme) = net.train(pair.own, batch), small.train(pair.meme, batch)
            local = alpha * net.criterion(p.logits, batch.y) + (1 - alpha) * divergence(q.logits, p.logits)
            shared = beta * small.criterion(q.logits, batch.y) + (1 - beta) * divergence(p.logits, q.logits)
            value = masked_mean(local + shared, batch.live)
            return Fit(value + p.penalty + q.penalty, Pair(own, meme))

        pair = descend(net, Pair(task.mine, got), task.data, loss, opt).params
        return Reply(Model(delta(pair.meme, got)), pair.own, task.data.count)

    return replace(
        fedavg(opt),
        client=lambda net, first: first,
        work=work,
        views={
            "global": View(common_view, shared=True),
            "personal": View(lambda net, task: own_answers(net, task.mine, task)),
        },
        up={"model": Channel(reduce=plain)},
    )
