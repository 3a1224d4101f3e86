"""MOON: a contrastive loss draws features to the received model's and away from the client's previous model's.

Paper
    Li, He, Song: "Model-Contrastive Federated Learning", CVPR 2021, arXiv 2103.16257.
What it changes
    The local loss becomes CE + mu * mean(l_con); the server is FedAvg's.
Algorithm
    z, z_glob, z_prev: features of the model in training, of the received one and of the client's model at the end of
    its last turn, the last two frozen and judging. l_con = -log(e^(cos(z, z_glob)/T) / (e^(cos(z, z_glob)/T) +
    e^(cos(z, z_prev)/T))).
Defaults
    mu = 5, the paper's best for CIFAR-10 out of {0.1, 1, 5, 10} (1 for CIFAR-100 and Tiny-ImageNet); T = 0.5; SGD
    with rate 0.01, momentum 0.9 and weight decay 1e-5.
Deviations
    Any network's features (the input of its head) are compared. The paper's networks have a projection of 256 outputs
    below the head: that belongs to the model, and all methods then have it. In a client's first turn the term is off,
    as in the authors' code; reading the paper, the previous model would be the initial one. One previous model is
    kept, however old.
Neutral
    mu = 0 is FedAvg.
Promise
    It does not reach the optimum of quadratics with different minimisers.
"""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from weft.core import Batch, Fit, Method, Model, Net, Reply, Task, Tree, method
from weft.core.net import masked_mean
from weft.core.tree import delta
from weft.local import SGD, Optimiser, descend
from weft.methods.fedavg import fedavg

PAPER = SGD(0.01, momentum=0.9, weight_decay=1e-5)


@method("MOON", "optimisation", neutral=("fedavg", {"opt": PAPER}, {"mu": 0.0}), reaches_optimum=False)
def moon(opt: Optimiser = PAPER, mu: float = 5.0, T: float = 0.5) -> Method:
    """MOON. opt: the local optimiser; mu: weight of the contrastive loss; T: its temperature."""

    def work(net: Net, task: Task[Model, Tree]) -> Reply[Model, Tree]:
        got = task.down.model

        def loss(w: Tree, batch: Batch, glob: Tree, prev: Tree, past: Tensor) -> Fit:
            out, buffers = net.train(w, batch)
            z_glob, z_prev = net.apply(glob, batch.x).features, net.apply(prev, batch.x).features
            near, far = (F.cosine_similarity(out.features, z) for z in (z_glob, z_prev))
            contrast = masked_mean(-F.logsigmoid((near - far) / T), batch.live)
            value = masked_mean(net.criterion(out.logits, batch.y), batch.live)
            return Fit(value + out.penalty + torch.where(past > 0, mu * contrast, 0), buffers)

        local = descend(net, got, task.data, loss, opt, given=(got, task.mine, task.data.past)).params
        return Reply(Model(delta(local, got)), local, task.data.count)

    return replace(fedavg(opt), client=lambda net, first: first, work=work)
