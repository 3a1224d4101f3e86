"""FedAvg with fine-tuning: before it answers, each client trains a copy of the common model on its own examples.

Paper
    None: folklore, called FedAvg-C in Zhang et al.: "FedALA: Adaptive Local Aggregation for Personalized Federated
    Learning", AAAI 2023, arXiv 2212.01197.
What it changes
    Only who answers; the common model is that of FedAvg.
Algorithm
    theta_k = w - eta * gradients over E_ft epochs from the present w; theta_k answers for client k and is thrown away.
Defaults
    E_ft = the local epochs of the run; eta = 0.05, as in training.
Deviations
    None. A client that had no turn answers like any other, with a copy that it trains on its own examples.
Neutral
    It trains as FedAvg; with E_ft = 0 it also answers so.
Promise
    As FedAvg: with several local steps and different client optima the common model does not reach the optimum.
"""

from __future__ import annotations

from dataclasses import replace

from weft.core import Method, Model, Net, Phase, Predict, Task, View, method
from weft.local import SGD, Optimiser, descend
from weft.methods.fedavg import fedavg, global_view


@method("FedAvg + fine-tuning", "personalised", neutral=("fedavg", {}, {}), reaches_optimum=False)
def fedavg_ft(opt: Optimiser = SGD(0.05), adapt_epochs: int | None = None) -> Method:
    """FedAvg with fine-tuning. opt: the local optimiser; adapt_epochs: epochs of fine-tuning, by default the run's."""

    def view(net: Net, task: Task[Model, tuple[()]]) -> Predict:
        own = descend(net, task.down.model, task.data, net.loss, opt, phase="adapt").params
        return lambda x: net.apply(own, x).logits

    return replace(
        fedavg(opt),
        views={"global": View(global_view, shared=True), "personal": View(view)},
        phases={"local": Phase(), "adapt": Phase(epochs=adapt_epochs)},
    )
