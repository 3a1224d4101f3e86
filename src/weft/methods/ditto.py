"""Ditto: beside FedAvg, every client keeps a personal model that is pulled towards the common one.

Paper
    Li, Hu, Beirami, Smith: "Ditto: Fair and Robust Federated Learning Through Personalization", ICML 2021, arXiv
    2012.04221.
What it changes
    Client k also minimises h_k(v) = F_k(v) + lambda/2 ||v - w^t||^2 over a model v_k of its own, w^t the received
    model.
Algorithm
    Common branch: FedAvg. Personal branch: v_k <- v_k - eta (grad F_k(v_k) + lambda (v_k - w^t)), from v_k of the last
    turn.
Defaults
    lambda = 1, the middle of the values that the paper tries; v_k learns for the run's epochs. eta = 0.05, as in the
    paper.
Deviations
    The authors sample clients in proportion to n_k and weight them alike; here they are sampled alike and weighted by
    n_k, which is the same in expectation. The branches draw batches of their own. v_k has its own running statistics,
    and starts each turn with a fresh optimiser. A client that had no turn answers with the received model.
Neutral
    The common model is that of FedAvg for any lambda; with lambda = 0, v_k is that of local-only training.
Promise
    The common model, as FedAvg's, does not reach the optimum of quadratics with different minimisers.
"""

from __future__ import annotations

from dataclasses import replace

from weft.core import Batch, Fit, Method, Model, Net, Phase, Reply, Task, Tree, View, method
from weft.core.tree import delta
from weft.local import SGD, Optimiser, descend, prox
from weft.methods.fedavg import fedavg, global_view, kept_view


@method("Ditto", "personalised", neutral=("fedavg", {}, {}), reaches_optimum=False, off={"lam": 0.0})
def ditto(
    opt: Optimiser = SGD(0.05), lam: float = 1.0, personal: Optimiser | None = None, personal_epochs: int | None = None
) -> Method:
    """Ditto. opt: the local optimiser; lam: the pull lambda.

    personal, personal_epochs: optimiser and epochs of the personal model, by default those of the common one.
    """

    def work(net: Net, task: Task[Model, Tree]) -> Reply[Model, Tree]:
        got, v = task.down.model, task.mine

        def loss(v: Tree, batch: Batch, anchor: Tree) -> Fit:
            value, buffers = net.loss(v, batch)
            return Fit(value + prox(net, v, anchor, lam), buffers)

        w = descend(net, got, task.data, net.loss, opt).params
        v = descend(net, v, task.data, loss, personal or opt, given=(got,), phase="personal").params
        return Reply(Model(delta(w, got)), v, task.data.count)

    return replace(
        fedavg(opt),
        client=lambda net, first: first,
        work=work,
        views={"global": View(global_view, shared=True), "personal": kept_view()},
        phases={"local": Phase(), "personal": Phase(epochs=personal_epochs)},
    )
