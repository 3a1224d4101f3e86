"""Local-only: every client trains its own model and nobody sends anything; what a personalised method must beat.

Paper
    None: folklore, called SOLO in Li, He, Song: "Model-Contrastive Federated Learning", CVPR 2021, arXiv 2103.16257.
What it changes
    Nothing is sent, so nothing is averaged.
Algorithm
    w_k <- w_k - eta * gradients over E local epochs in each turn of client k; all start from the same model.
Defaults
    eta = 0.05; epochs and batch size are settings of the run, as in the federated method that it is compared with.
Deviations
    A client trains when it is drawn, so with a cohort below 1 it makes as many steps as in the other methods; with all
    clients in every round it is the bound of the literature. A client that had no turn answers with the initial model.
Neutral
    It is LG-FedAvg, or FedPer, with every layer kept at home.
Promise
    None about a common model: there is no such model.
"""

from __future__ import annotations

from weft.core import Method, Net, Nothing, Predict, Reply, Task, Tree, View, method
from weft.core.select import everything
from weft.local import SGD, Optimiser, descend


@method(
    "Local only",
    "base",
    neutral=("lg-fedavg", {"keep": everything}, {}),
    mixed=True,
    exempt={"lost": "nobody sends anything"},
)
def local(opt: Optimiser = SGD(0.05)) -> Method:
    """Local-only training. opt: the local optimiser."""

    def work(net: Net, task: Task[Nothing, Tree]) -> Reply[Nothing, Tree]:
        return Reply(Nothing(), descend(net, task.mine, task.data, net.loss, opt).params, task.data.count)

    def view(net: Net, task: Task[Nothing, Tree]) -> Predict:
        return lambda x: net.apply(task.mine, x).logits

    return Method(
        "local",
        server=lambda net, first: Nothing(),
        client=lambda net, first: first,
        send=lambda state, r: state,
        work=work,
        advance=lambda state, up, r: state,
        views={"personal": View(view)},
        up={},
    )
