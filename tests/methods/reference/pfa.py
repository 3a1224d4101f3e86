"""PFA (Liu, Guo, Chen 2021): FedAvg, then groups by the sparsity of activations, then FedAvg in each group."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .descent import descend, mean, minus
from .linkage import clusters
from .model import Array, Tree
from .world import World


def sparsity(world: World, judge: Tree, client: int, eps: float) -> Array:
    """s_i [width]: of each feature the share of the client's examples where it is no more than `eps` from 0."""
    s = np.zeros(judge["head.weight"].shape[1])
    for x in world.x[client]:
        s += np.abs(world.model.features(judge, x[None])[0]) <= eps
    return s / len(world.x[client])


@dataclass
class Federation:
    """What there is after some rounds: w_F, and of each group its model and its members' s_i."""

    world: World
    eps: float
    common: Tree  # w_F after stage 1, before it the model of FedAvg
    models: list[Tree]
    members: list[dict[int, Array]]
    sent: dict[tuple[int, int], tuple[Tree, Array]]  # (round, client) -> change and sparsity of the received model

    def group_of(self, client: int) -> int | None:
        """Where a client is."""
        return next((g for g, own in enumerate(self.members) if client in own), None)

    def nearest(self, s: Array) -> int:
        """The group whose members are on average least far from `s`."""
        return int(np.argmin([np.mean([np.linalg.norm(s - t) for t in own.values()]) for own in self.members]))

    def answer(self, client: int, x: Array) -> Array:
        """Logits of the client's group; a stranger's group is that to which its own examples take it."""
        if not self.members:
            return self.world.model.logits(self.common, x)
        group = self.group_of(client)
        if group is None:
            group = self.nearest(sparsity(self.world, self.common, client, self.eps))
        return self.world.model.logits(self.models[group], x)


def pfa(world: World, *, lr: float, warm: int, momentum: float = 0.0, groups: int = 0, eps: float = 0.0) -> Federation:
    """The federation after all rounds."""
    fed = Federation(world, eps, dict(world.first), [], [], {})
    for number, turn in enumerate(world.turns, 1):
        place = {i: fed.group_of(i) for i in turn.ids}
        start = {i: fed.common if g is None else fed.models[g] for i, g in place.items()}
        end = {i: descend(world, i, start[i], turn.batches[i]["local"], lr=lr, momentum=momentum) for i in turn.ids}
        s = {i: sparsity(world, start[i], i, eps) for i in turn.ids}
        fed.sent |= {(number, i): (minus(end[i], start[i]), s[i]) for i in turn.ids}
        if not turn.ids:
            continue
        if number <= warm:
            fed.common = mean([end[i] for i in turn.ids], world.counts(turn.ids))
            continue
        if not fed.members:
            d = np.array([[np.linalg.norm(s[i] - s[j]) for j in turn.ids] for i in turn.ids])
            fed.members = [{turn.ids[k]: s[turn.ids[k]] for k in part} for part in clusters(d, count=groups)]
            fed.models = [fed.common for _ in fed.members]
            place = {i: fed.group_of(i) for i in turn.ids}
        for g in range(len(fed.models)):
            here = [i for i in turn.ids if place[i] == g]
            if here:
                fed.models[g] = mean([end[i] for i in here], world.counts(here))
        late = {i: fed.nearest(s[i]) for i in turn.ids if place[i] is None}  # all compare with who was there before
        for i, g in late.items():
            fed.members[g][i] = s[i]
    return fed
