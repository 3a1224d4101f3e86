"""FedBABU: the head stays as it was drawn while the body is federated; before it answers, a client fine-tunes a copy.

Paper
    Oh, Kim, Yun: "FedBABU: Toward Enhanced Representation for Federated Image Classification", ICLR 2022, arXiv
    2106.06042.
What it changes
    The head is one random constant for all: only the body is trained, sent and averaged.
Algorithm
    From the received body, E epochs of SGD on the body through the fixed head; body <- sum_k n_k / n * body_k. Client k
    answers after tau_f epochs of SGD on a copy of body and head.
Defaults
    tau_f = 5, on body and head, as in the paper; eta = 0.05 without momentum (authors: 0.1, which falls, and 0.9).
Deviations
    The authors' code averages clients alike, the paper by n_k. The head is frozen, not trained with rate 0, so that
    momentum and weight decay leave it alone too. Fine-tuning starts from the present body, where one public library
    starts from what the client trained last. While the head alone is fine-tuned, running statistics stand still. A
    client that had no turn fine-tunes a copy like any other.
Neutral
    With nothing kept it trains as FedAvg.
Promise
    None about a common model: its head knows nothing.
"""

from __future__ import annotations

from typing import Literal

from weft.core import Method, Model, Net, Phase, Predict, Reply, Select, Task, Tree, View, method
from weft.core.errors import SettingError
from weft.core.select import everything, nothing, role
from weft.core.tree import delta
from weft.local import SGD, Optimiser, descend
from weft.local.frozen import within
from weft.methods.fedavg import personal_layers


@method(
    "FedBABU",
    "personalised",
    neutral=("fedavg", {}, {"keep": nothing}),
    exempt={"moves": "the head is a constant: it stays as it was drawn"},
)
def fedbabu(
    opt: Optimiser = SGD(0.05),
    adapt_epochs: int = 5,
    adapt: Literal["all", "head", "body"] = "all",
    keep: Select = role("head"),
) -> Method:
    """FedBABU. opt: the local optimiser; adapt_epochs: epochs of fine-tuning; adapt: what they move; keep: head."""
    parts = {"all": everything, "head": keep, "body": ~keep}
    if adapt not in parts:
        raise SettingError(f"adapt = {adapt!r} is no part of the network: use 'all', 'head' or 'body'")

    def joined(task: Task[Model, Tree]) -> Tree:
        return {**task.down.model, **task.mine}

    def work(net: Net, task: Task[Model, Tree]) -> Reply[Model, Tree]:
        trained = descend(net, joined(task), task.data, net.loss, opt, only=~keep).params
        return Reply(Model(delta(net.split(trained, ~keep)[0], task.down.model)), task.mine, task.data.count)

    def tuned(net: Net, task: Task[Model, Tree]) -> Predict:
        part = parts[adapt]
        own = descend(net, joined(task), task.data, within(net, part), opt, only=part, phase="adapt").params
        return lambda x: net.apply(own, x).logits

    def untuned(net: Net, task: Task[Model, Tree]) -> Predict:
        return lambda x: net.apply(joined(task), x).logits

    return personal_layers(
        keep,
        opt,
        work=work,
        views={"global": View(untuned), "personal": View(tuned)},
        phases={"local": Phase(), "adapt": Phase(epochs=adapt_epochs)},
    )
