"""DistFL (Liu et al. 2021), as read from its abstract: clusters by how models answer to the server's probes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from .descent import descend, mean, minus
from .differentiable import linear, params
from .linkage import clusters
from .model import EPS, Array, Tree, softmax
from .world import World


def moved(world: World, judge: Tree, x: Array, steps: int, rate: float = 0.1) -> Array:
    """Probes after Adam's ascent, each on the logit of its class in eval mode; those of class 0 stand first."""
    p = params(judge)
    classes = len(p["head.bias"])
    y = torch.arange(classes).repeat_interleave(len(x) // classes)
    probes = torch.tensor(x, dtype=torch.float64, requires_grad=True)
    adam = torch.optim.Adam([probes], lr=rate, maximize=True)
    for _ in range(steps):
        a = linear(p, "body.", probes)
        if "norm.weight" in p:
            a = (a - p["norm.running_mean"]) / (p["norm.running_var"] + EPS).sqrt() * p["norm.weight"] + p["norm.bias"]
        adam.zero_grad()
        linear(p, "head.", a.tanh()).gather(1, y[:, None]).sum().backward()  # type: ignore[no-untyped-call]
        adam.step()
    return probes.detach().numpy()


def told(world: World, model: Tree, probes: Array, tau: float) -> Array:
    """p in row 0, K in the others, [1 + C, C]."""
    answers = softmax(world.model.logits(model, probes) / tau)
    return np.stack([answers.mean(0), *(part.mean(0) for part in np.split(answers, answers.shape[1]))])


def bits(p: Array) -> float:
    """Shannon's entropy."""
    return -sum(float(v * np.log2(v)) for v in p if v > 0)


def js(p: Array, q: Array) -> float:
    """Jensen-Shannon divergence: entropy of the mixture less the mean entropy."""
    return max(0.0, bits((p + q) / 2) - (bits(p) + bits(q)) / 2)


def apart(a: Array, b: Array) -> float:
    """D of the knowledge of two models."""
    return float(np.sqrt(js(a[0], b[0])) + np.mean([np.sqrt(js(p, q)) for p, q in zip(a[1:], b[1:], strict=True)]))


@dataclass
class Federation:
    """What there is after some rounds: w_0, the probes, and of each cluster its model and its members' knowledge."""

    world: World
    common: Tree
    probes: Array
    models: list[Tree]
    members: list[dict[int, Array]]
    sent: dict[tuple[int, int], Tree]  # (round, client) -> change of the received model

    def cluster_of(self, client: int) -> int | None:
        """Where a client is."""
        return next((c for c, own in enumerate(self.members) if client in own), None)

    def model_of(self, client: int) -> Tree:
        """That of the client's cluster; of a stranger w_0."""
        c = self.cluster_of(client)
        return self.common if c is None else self.models[c]


def distfl(
    world: World,
    noise: Array,
    *,
    lr: float,
    warm: int,
    momentum: float = 0.0,
    tau: float = 1.0,
    gap_min: float = 0.1,
    outlier: float = 1.0,
    refine: int = 100,
) -> Federation:
    """The federation after all rounds; the probes begin at `noise`."""
    fed = Federation(world, dict(world.first), noise, [], [], {})
    for number, turn in enumerate(world.turns, 1):
        if not turn.ids:
            continue
        place = {i: fed.cluster_of(i) for i in turn.ids}
        start = {i: fed.model_of(i) for i in turn.ids}
        end = {i: descend(world, i, start[i], turn.batches[i]["local"], lr=lr, momentum=momentum) for i in turn.ids}
        fed.sent |= {(number, i): minus(end[i], start[i]) for i in turn.ids}
        if number <= warm:
            fed.common = mean([end[i] for i in turn.ids], world.counts(turn.ids))
            continue
        if not fed.members:
            fed.probes = moved(world, fed.common, noise, refine)
            k = {i: told(world, end[i], fed.probes, tau) for i in turn.ids}
            d = np.array([[apart(k[i], k[j]) for j in turn.ids] for i in turn.ids])
            fed.members = [{turn.ids[m]: k[turn.ids[m]] for m in part} for part in clusters(d, gap_min)]
            fed.models = [fed.common for _ in fed.members]
            place = {i: fed.cluster_of(i) for i in turn.ids}
        for c in range(len(fed.models)):
            here = [i for i in turn.ids if place[i] == c]
            if here:
                fed.models[c] = mean([end[i] for i in here], world.counts(here))
        centre = [np.mean(list(own.values()), axis=0) for own in fed.members]  # of who was there before
        for i in turn.ids:
            if place[i] is None:
                k_i = told(world, end[i], fed.probes, tau)
                far = [apart(k_i, m) for m in centre]
                if min(far) > outlier:
                    fed.members.append({i: k_i})
                    fed.models.append(end[i])
                else:
                    fed.members[int(np.argmin(far))][i] = k_i
    return fed
