"""Central training: one model on everybody's examples pooled, the bound that a global model is measured against.

Paper
    None: folklore.
What it changes
    Examples are pooled instead of models being averaged.
Algorithm
    w <- w - eta * gradients over E epochs of the union of all training examples, shuffled anew in each.
Defaults
    eta = 0.05; epochs and batch size are settings of the run.
Deviations
    It is FedAvg with a single client that holds the training examples of all; validation and test examples stay out.
    The optimiser starts afresh in every round, as the clients' do.
Neutral
    FedAvg with one client.
Promise
    None of its own: there is one client, so that no minimisers differ. It is plain SGD on the pooled examples.
"""

from __future__ import annotations

from dataclasses import replace

from weft.core import Method, method
from weft.local import SGD, Optimiser
from weft.methods.fedavg import fedavg


@method(
    "Central training",
    "base",
    neutral=("fedavg", {}, {}),
    exempt={"messages": "examples are pooled, which a network of clients is there to avoid"},
)
def central(opt: Optimiser = SGD(0.05)) -> Method:
    """Central training. opt: the optimiser."""
    return replace(fedavg(opt), needs=frozenset({"pooled data"}))
