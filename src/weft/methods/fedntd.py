"""FedNTD: clients distil what the received model says about the wrong classes, so that they do not forget them.

Paper
    Lee, Jeong, Shin, Bae, Yun: "Preservation of the Global Knowledge by Not-True Distillation in Federated Learning",
    NeurIPS 2022, arXiv 2106.03097.
What it changes
    The local loss gains a divergence between received and local model over all classes but the true one.
Algorithm
    q, q_g: logits of the model in training and of the received one, frozen and judging. Without the entry of the true
    class: p_s = softmax(q / T), p_t = softmax(q_g / T). loss = CE(q, y) + beta T^2 KL(p_t || p_s), mean over examples.
    Server: FedAvg.
Defaults
    beta = 1, T = 1, SGD with rate 0.01, momentum 0.9 and weight decay 1e-5, as in the authors' settings (the class in
    their code has T = 3).
Deviations
    The received model judges with its running statistics and without dropout; the authors' networks have neither. In
    sequences each position counts, and their mean. Their decay of the rate is a setting of the run.
Neutral
    beta = 0 is FedAvg; so is any beta with two classes, where one wrong class is left.
Promise
    It does not reach the optimum of quadratics with different minimisers.
"""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from weft.core import Batch, Fit, Method, Model, Net, Reply, Task, Tree, method
from weft.core.errors import SettingError
from weft.core.net import masked_mean
from weft.core.tree import delta
from weft.local import SGD, Optimiser, descend
from weft.methods.fedavg import fedavg

PAPER = SGD(0.01, momentum=0.9, weight_decay=1e-5)


def not_true(logits: Tensor, y: Tensor) -> Tensor:
    """The logits [..., classes] without that of the true class y [...], in the same order."""
    others = torch.arange(logits.shape[-1] - 1, device=y.device)
    return logits.gather(-1, others + (others >= y[..., None]))


@method("FedNTD", "distillation", neutral=("fedavg", {"opt": PAPER}, {"beta": 0.0}), reaches_optimum=False)
def fedntd(opt: Optimiser = PAPER, beta: float = 1.0, T: float = 1.0) -> Method:
    """FedNTD. opt: the local optimiser; beta: weight of the distillation; T: its temperature."""
    if T <= 0:
        raise SettingError(f"T = {T} is no temperature: use a number above 0, such as 1")

    def work(net: Net, task: Task[Model, tuple[()]]) -> Reply[Model, tuple[()]]:
        got = task.down.model

        def loss(w: Tree, batch: Batch, glob: Tree) -> Fit:
            out, buffers = net.train(w, batch)
            student, teacher = (
                F.log_softmax(not_true(q, batch.y) / T, -1) for q in (out.logits, net.apply(glob, batch.x).logits)
            )
            each = (teacher.exp() * (teacher - student)).sum(-1).reshape(len(batch.y), -1)
            judged = (batch.y >= 0).reshape(each.shape).to(each.dtype)
            forgotten = (each * judged).sum(1) / judged.sum(1).clamp(min=1)
            value = net.criterion(out.logits, batch.y) + beta * T**2 * forgotten
            return Fit(masked_mean(value, batch.live) + out.penalty, buffers)

        local = descend(net, got, task.data, loss, opt, given=(got,)).params
        return Reply(Model(delta(local, got)), (), task.data.count)

    return replace(fedavg(opt), work=work)
