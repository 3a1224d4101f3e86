"""LG-FedAvg: private representations, one common head; clients may have different networks below it.

Paper
    Liang, Liu, Ziyin, Allen, Auerbach, Brent, Salakhutdinov, Morency: "Think Locally, Act Globally: Federated Learning
    with Local and Global Representations", 2020, arXiv 2001.01523.
What it changes
    The lower layers l_k stay at the client; only the layers g on top are sent and averaged.
Algorithm
    From (own l_k, g as received), E epochs of SGD on both; g <- sum_k n_k / n * g_k.
Defaults
    keep = all but the head; the authors' code shares the last two or three layers. eta = 0.05 (authors: 0.05 and 0.1).
Deviations
    The authors start from a model that FedAvg has trained for hundreds of rounds; here that is a setting of the run (a
    given first model), and without it clients start from the common initial one. The authors choose each client's model
    by its test accuracy; nothing is chosen here. The losses that the paper adds for the representation are left out.
    Networks that differ must give the shared layers the same names and shapes. A client that had no turn has the
    initial layers.
Neutral
    With nothing kept it is FedAvg, with everything kept local-only training; it is FedPer with the other half kept.
Promise
    None about a common model: there is no such model.
"""

from __future__ import annotations

from weft.core import Method, Select, method
from weft.core.select import everything, role
from weft.local import SGD, Optimiser
from weft.methods.fedavg import personal_layers


@method("LG-FedAvg", "personalised", neutral=("local", {}, {"keep": everything}), mixed=True)
def lg_fedavg(opt: Optimiser = SGD(0.05), keep: Select = ~role("head")) -> Method:
    """LG-FedAvg. opt: the local optimiser; keep: the private layers."""
    return personal_layers(keep, opt)
