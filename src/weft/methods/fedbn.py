"""FedBN: FedAvg in which batch norm stays at home, against shifts of features between clients.

Paper
    Li, Jiang, Zhang, Kamp, Dou: "FedBN: Federated Learning on Non-IID Features via Local Batch Normalization", ICLR
    2021, arXiv 2102.07623.
What it changes
    Scale, offset and running statistics of every batch norm layer stay at the client; all else is averaged.
Algorithm
    From (the received rest, own batch norm), E epochs of SGD on all; w <- sum_k n_k / n * w_k over what is not batch
    norm.
Defaults
    keep = batch norm, as in the paper; keep = norm also keeps layer and group norm. eta = 0.05 (authors: 0.01).
Deviations
    Layers are found by their type; the authors' code looks for "bn" in names, which misses some in residual networks.
    Weights are n_k; the authors' clients are equally large, and weighted alike. A client that had no turn has the
    initial statistics.
Neutral
    With nothing kept, or in a network without batch norm, it is FedAvg.
Promise
    None about a common model: there is no such model.
"""

from __future__ import annotations

from weft.core import Method, Select, method
from weft.core.select import nothing, role
from weft.local import SGD, Optimiser
from weft.methods.fedavg import personal_layers


@method("FedBN", "personalised", neutral=("fedavg", {}, {"keep": nothing}))
def fedbn(opt: Optimiser = SGD(0.05), keep: Select = role("batchnorm")) -> Method:
    """FedBN. opt: the local optimiser; keep: the layers that stay at home."""
    return personal_layers(keep, opt)
