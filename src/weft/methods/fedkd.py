"""FedKD: a private mentor and a shared mentee teach each other; changes of the mentee are sent at low rank.

Paper
    Wu, Wu, Lyu, Huang, Xie: "Communication-efficient federated learning via knowledge distillation", Nature
    Communications 13:2032, 2022, arXiv 2108.13323.
What it changes
    Only the mentee is federated. Distillation is divided by the sum of the two task losses, and every matrix of a
    change is cut to the rank that keeps a share T(t) of its energy, on the way up and on the way down.
Algorithm
    With task losses L_t, L_s, outputs P_t, P_s and features H_t, H_s, and S = L_t + L_s: mentor L_t + KL(P_s || P_t) /
    S + L_h, mentee L_s + KL(P_t || P_s) / S + L_h, L_h = MSE(H_t, W_h H_s) / S; W_h learns from both. Server: mean of
    the cut changes, cut again, added. T(t) = start + (end - start) t, t = round / rounds.
Defaults
    start = 0.95, end = 0.98, as in the paper; SGD with rate 0.01, gradients clipped at norm 10, as in libraries (the
    authors: Adam with 3e-6 for language models). `rounds` = 50 is the default of a run: set it to the run's.
Deviations
    The mentee has the architecture of the server: the first that `model` names, or that of all clients. What a loss
    distils from, and S, are constants (not confirmed; libraries differentiate both); S has 1e-6 added. A matrix is
    [first axis, rest], and sent whole where factors would not be smaller; public code may cut a flat spectrum to
    nothing. Means are uniform; running statistics take the mean weighted by n_k. The download is the whole mentee,
    since a client that missed a round could not use a change: the bytes down are not those of the paper. W_h starts
    as `torch.nn.Linear` does, alike at all clients. The clip holds for all three gradients together. A client that had
    no turn answers with the mentee.
Neutral
    None: with start = end = 1 nothing is cut, and it is mutual learning.
Promise
    None about the mentee: it learns from the mentors too.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from weft.core import Batch, Channel, Fit, Method, Model, Net, Reply, Round, Task, Tree, View, method
from weft.core.errors import SettingError
from weft.core.net import masked_mean
from weft.core.stream import code, uniform
from weft.core.tree import add, delta
from weft.local import SGD, Optimiser, descend
from weft.local.distil import common_view, divergence, own_answers, partner
from weft.methods.fedavg import fedavg
from weft.server import plain
from weft.wire import SVDEnergy, truncated

EPS = 1e-6  # beside the sum of the task losses, which may come near 0


class Mentor(NamedTuple):
    """What a client keeps: its model, and the projection W_h of the mentee's features onto the mentor's."""

    model: Tree
    projection: Tree


class Lesson(NamedTuple):
    """Mentor and mentee while they learn."""

    mentor: Mentor
    mentee: Tree


class Down(NamedTuple):
    """The mentee, and the share of energy that changes keep in this round."""

    model: Tree
    energy: Tree


@method(
    "FedKD",
    "distillation",
    mixed=True,
    off={"start": 1.0, "end": 1.0},
    exempt={"blend": "what FedKD sends is cut to a low rank"},
)
def fedkd(opt: Optimiser = SGD(0.01, clip=10.0), start: float = 0.95, end: float = 0.98, rounds: int = 50) -> Method:
    """FedKD. opt: the optimiser of mentor, mentee and W_h; start, end: energy that is kept; rounds: until the end."""
    if not 0 < start <= end <= 1 or rounds < 1:
        raise SettingError(
            f"start = {start}, end = {end}, rounds = {rounds} is no rising share of energy: use 0 < start <= end <= 1 "
            "and a round or more, such as 0.95, 0.98 and 50"
        )

    def energy(r: Round) -> float:
        return start + (end - start) * min(1.0, r.number / rounds)

    def cut(net: Net, change: Tree, keep: float | Tensor) -> Tree:
        return {**change, **truncated(net.learnable(change), keep)}

    def client(net: Net, first: Tree) -> Mentor:
        small, like = partner(net), next(iter(first.values()))
        start = uniform(torch.tensor(code("W_h")), (net.width, small.width), like.dtype).to(like.device)
        return Mentor(first, {"W_h": (2 * start - 1) / small.width**0.5})

    def work(net: Net, task: Task[Down, Mentor]) -> Reply[Model, Mentor]:
        small, got = partner(net), task.down.model

        def loss(both: Lesson, batch: Batch) -> Fit:
            (t, mentor), (s, mentee) = net.train(both.mentor.model, batch), small.train(both.mentee, batch)
            tasks = net.criterion(t.logits, batch.y), small.criterion(s.logits, batch.y)
            doubt = masked_mean(tasks[0] + tasks[1], batch.live).detach() + EPS
            project = both.mentor.projection["W_h"].T
            hidden = (t.features - s.features.detach() @ project, t.features.detach() - s.features @ project)
            taught = divergence(s.logits, t.logits) + divergence(t.logits, s.logits)
            taught = taught + (hidden[0] ** 2 + hidden[1] ** 2).mean(1)
            value = masked_mean(tasks[0] + tasks[1] + taught / doubt, batch.live)
            return Fit(value + t.penalty + s.penalty, Lesson(Mentor(mentor, {}), mentee))

        mentor, mentee = descend(net, Lesson(task.mine, got), task.data, loss, opt).params
        change = cut(small, delta(mentee, got), task.down.energy["keep"])
        return Reply(Model(change), mentor, task.data.count)

    def send(state: Model, r: Round) -> Down:
        like = next(iter(state.model.values()))
        return Down(state.model, {"keep": like.new_tensor(energy(r))})

    return replace(
        fedavg(opt),
        client=client,
        send=send,
        work=work,
        advance=lambda state, up, r: Model(add(state.model, cut(r.net, up.model, energy(r)))),
        views={
            "global": View(common_view, shared=True),
            "personal": View(lambda net, task: own_answers(net, task.mine.model, task)),
        },
        up={"model": Channel(SVDEnergy(None), plain)},
    )
