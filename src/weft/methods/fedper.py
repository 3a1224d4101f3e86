"""FedPer: the base is federated, the personal layers on top never leave their client; both are trained together.

Paper
    Arivazhagan, Aggarwal, Singh, Choudhary: "Federated Learning with Personalization Layers", 2019, arXiv 1912.00818.
What it changes
    Only the base layers W_B are sent and averaged; the personalisation layers W_P stay at the client.
Algorithm
    From (W_B as received, own W_P), E epochs of SGD on all layers at once; W_B <- sum_k n_k / n * W_B,k.
Defaults
    keep = the head, as most implementations have it; the paper keeps the classifier and up to three blocks before it.
    eta = 0.05.
Deviations
    All clients of a round take part, not all clients. The optimiser starts afresh in every turn. Batch norm inside the
    base follows the base, running statistics included. The received base is judged with the personal layers of the
    client's last turn; a client that had no turn has the initial layers.
Neutral
    With nothing kept it is FedAvg, with everything kept local-only training.
Promise
    None about a common model: there is no such model.
"""

from __future__ import annotations

from weft.core import Method, Select, method
from weft.core.select import nothing, role
from weft.local import SGD, Optimiser
from weft.methods.fedavg import personal_layers


@method("FedPer", "personalised", neutral=("fedavg", {}, {"keep": nothing}))
def fedper(opt: Optimiser = SGD(0.05), keep: Select = role("head")) -> Method:
    """FedPer. opt: the local optimiser; keep: the personal layers."""
    return personal_layers(keep, opt)
