"""FedPHP: every client keeps a moving average of its local models, which answers for it and teaches the received model.

Paper
    Li, Zhan, Shao, Li, Song: "FedPHP: Federated Personalization with Inherited Private Models", ECML PKDD 2021.
What it changes
    Beside FedAvg a client keeps an inherited model w_p, and the local loss becomes (1 - lambda) CE + lambda R.
Algorithm
    R = "mmd": maximum mean discrepancy between the features of w_k and of w_p on the batch, biased estimate with five
    Gaussian kernels exp(-||x - y||^2 / b), b = b_0 / 4 ... 4 b_0 in factors of 2, b_0 the mean squared distance of the
    pairs plus 1e-8; R = "kd": cross-entropy of softmax(z_k) with softmax(z_p / T). w_p and b_0 are constants, w_p
    judges. After local training w_p <- mu_t w_p + (1 - mu_t) w_k, mu_t = min(mu, mu t / ramp), t the client's earlier
    turns.
Defaults
    lambda = 0.05, R = MMD, mu = 0.9, T = 4, SGD with rate 0.03, momentum 0.9, weight decay 1e-5 and gradients clipped
    to 100, as in the authors' code. ramp = 10; theirs is the expected number of a client's turns in the whole run.
Deviations
    The code makes at least 5 steps in a turn; here epochs are what the run says. T_student = T, with a factor T^2 on R,
    is the usual form of distillation. Running statistics are averaged like the rest of w_p. A client that had no turn
    answers with the received model.
Neutral
    With lambda = 0 the common model is FedAvg's, whatever mu.
Promise
    The common model, as FedAvg's, does not reach the optimum of quadratics with different minimisers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from weft.core import Batch, Fit, Method, Model, Net, Reply, Task, Tree, View, method
from weft.core.errors import SettingError
from weft.core.net import masked_mean
from weft.core.tree import delta, mix
from weft.local import SGD, Optimiser, descend
from weft.local.mmd import distances, mmd
from weft.methods.fedavg import fedavg, global_view, kept_view

PAPER = SGD(0.03, momentum=0.9, weight_decay=1e-5, clip=100.0)


def gaussians(a: Tensor, b: Tensor, live: Tensor) -> Callable[[Tensor], Tensor]:
    """The kernels, whose widths follow the distances between all live rows of both sets of features."""
    x, real = torch.cat([a, b]).detach(), torch.cat([live, live])
    pairs = (real.sum() * (real.sum() - 1)).clamp(min=1)
    width = real @ distances(x, x).clamp(min=0) @ real / pairs + 1e-8
    return lambda gap: torch.stack([torch.exp(-gap.clamp(min=0) / (width * 2.0**i)) for i in range(-2, 3)]).sum(0)


@method("FedPHP", "personalised", neutral=("fedavg", {"opt": PAPER}, {"lam": 0.0}), reaches_optimum=False)
def fedphp(
    opt: Optimiser = PAPER,
    lam: float = 0.05,
    by: Literal["mmd", "kd"] = "mmd",
    mu: float = 0.9,
    ramp: int = 10,
    T: float = 4.0,
    T_student: float = 1.0,
) -> Method:
    """FedPHP. opt: the local optimiser; lam: weight of R; by: which R; mu, ramp: final momentum, and turns until then.

    T, T_student: temperatures of the teacher and of the student in R = "kd".
    """
    if by not in ("mmd", "kd") or ramp < 1 or min(T, T_student) <= 0:
        raise SettingError(
            f"by = {by!r}, ramp = {ramp}, T = {T}, T_student = {T_student} of fedphp: use 'mmd' or 'kd', and above 0"
        )

    def work(net: Net, task: Task[Model, Tree]) -> Reply[Model, Tree]:
        got, data = task.down.model, task.data

        def loss(w: Tree, batch: Batch, teacher: Tree) -> Fit:
            (out, buffers), told = net.train(w, batch), net.apply(teacher, batch.x)
            if by == "mmd":
                middle = batch.live @ told.features / batch.live.sum().clamp(min=1)  # nearer to 0, less is rounded off
                a, b = out.features - middle, told.features - middle
                transfer = mmd(a, b, batch.live, gaussians(a, b, batch.live))
            else:
                each = -((told.logits / T).softmax(-1) * (out.logits / T_student).log_softmax(-1)).sum(-1)
                transfer = T_student**2 * masked_mean(each.reshape(len(each), -1).mean(1), batch.live)
            task_loss = masked_mean(net.criterion(out.logits, batch.y), batch.live)
            return Fit((1 - lam) * task_loss + lam * transfer + out.penalty, buffers)

        local = descend(net, got, data, loss, opt, given=(task.mine,)).params
        kept = (mu * data.past.to(data.count.dtype) / ramp).clamp(max=mu)
        return Reply(Model(delta(local, got)), mix(task.mine, local, kept), data.count)

    return replace(
        fedavg(opt),
        client=lambda net, first: first,
        work=work,
        views={"global": View(global_view, shared=True), "personal": kept_view()},
    )
