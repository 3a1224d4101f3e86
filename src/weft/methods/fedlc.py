"""FedLC: local training lowers each logit by a margin that is larger the fewer examples of the class a client has.

Paper
    Zhang, Li, Li, Xu, Wu, Ding, Wu: "Federated Learning with Label Distribution Skew via Logits Calibration", ICML
    2022, arXiv 2209.00189.
What it changes
    The local cross-entropy is that of calibrated logits; server and answers are FedAvg's.
Algorithm
    n_y: the client's own training examples of class y. f'_y = f_y - tau n_y^(-1/4) for every class; loss = mean softmax
    cross-entropy of f' with the label; w <- sum_k n_k / n * w_k. Answers come from f.
Defaults
    tau = 1, which public versions use beside 0.5; the paper tunes it. eta = 0.05.
Deviations
    The softmax runs over all classes: the printed equation leaves out the true one, and has no lower bound. A class
    that the client does not have has an infinite margin, so it is taken out of the softmax; `floor` above 0 counts it
    as so many examples instead. Clients are weighted by n_k, which the paper does not say.
Neutral
    tau = 0 is FedAvg if no class is taken out.
Promise
    None: it calibrates classes, which quadratics have not.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from weft.core import Batch, Fit, Method, Model, Net, Reply, Task, Tree, method
from weft.core.errors import SettingError
from weft.core.net import masked_mean
from weft.core.tree import delta
from weft.local import SGD, Optimiser, descend
from weft.local.classes import class_counts
from weft.methods.fedavg import fedavg

OUT = -1e9  # instead of minus infinity, which padding would turn into NaN


@method("FedLC", "optimisation", neutral=("fedavg", {}, {"tau": 0.0, "floor": 1.0}))
def fedlc(opt: Optimiser = SGD(0.05), tau: float = 1.0, floor: float = 0.0) -> Method:
    """FedLC. opt: the local optimiser; tau: strength; floor: fewest examples that a class counts as, 0: taken out."""
    if tau < 0 or floor < 0:
        raise SettingError(f"tau = {tau} and floor = {floor} of fedlc: use 0 or more for both, such as tau=1, floor=0")

    def work(net: Net, task: Task[Model, tuple[()]]) -> Reply[Model, tuple[()]]:
        got, n = task.down.model, class_counts(net, task.data).clamp(min=floor)

        def loss(w: Tree, batch: Batch, n: Tensor) -> Fit:
            out, buffers = net.train(w, batch)
            margin = tau * n.clamp(min=1e-12) ** -0.25
            calibrated = torch.where(n > 0, out.logits - margin, OUT)
            value = masked_mean(net.criterion(calibrated, batch.y), batch.live)
            return Fit(value + out.penalty, buffers)

        local = descend(net, got, task.data, loss, opt, given=(n,)).params
        return Reply(Model(delta(local, got)), (), task.data.count)

    return replace(fedavg(opt), work=work)
