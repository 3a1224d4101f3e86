"""FedAvg with fine-tuning: the personal model is the global one after SGD on the client's training data."""

from __future__ import annotations

from typing import Any

from .descent import descend
from .model import Array, Tree
from .world import World


def finetune(world: World, client: int, w: Tree, batches: list[Array], *, lr: float, **sgd: Any) -> Tree:
    return descend(world, client, w, batches, lr=lr, **sgd)
