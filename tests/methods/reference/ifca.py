"""IFCA (Ghosh et al. 2020): every client trains the model of least loss, and each is averaged over who chose it."""

from __future__ import annotations

import numpy as np

from .descent import descend, mean, minus
from .model import Tree
from .world import World


def ifca(world: World, models: list[Tree], lr: float) -> tuple[list[Tree], set[int]]:
    """Algorithm 1 with averaged models, in numpy: the models after all rounds, and those that somebody chose."""
    net, taken = world.model, set()
    for turn in world.turns:
        chosen: dict[int, list[Tree]] = {}
        for i in turn.ids:
            losses = []
            for model in models:
                z = net.logits(model, world.x[i])
                losses.append(float(np.mean(np.log(np.exp(z).sum(1)) - z[np.arange(len(z)), world.y[i]])))
            j = int(np.argmin(losses))
            end = descend(world, i, models[j], turn.batches[i]["local"], lr=lr)
            chosen.setdefault(j, []).append(minus(end, models[j]))
        taken |= set(chosen)
        models = [
            {k: v + mean(chosen[j])[k] for k, v in model.items()} if j in chosen else model
            for j, model in enumerate(models)
        ]
    return models, taken
