"""Small federations with the trouble of real ones: unequal data, unequal work, absent clients."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .model import Array, BnMlp, Mlp, Model, Tree


@dataclass
class Turn:
    """One round: who takes part, and for every client (absent too) the rows of each step of each phase."""

    ids: list[int]
    batches: dict[int, dict[str, list[Array]]]


@dataclass
class World:
    """`x[i]` [n_i, d] and `y[i]` [n_i] belong to client i, `first` is the common initial model."""

    x: list[Array]
    y: list[Array]
    first: Tree
    turns: list[Turn]
    population: int
    model: Model = Mlp

    def counts(self, ids: list[int]) -> list[float]:
        """The aggregation weights n_i: numbers of examples."""
        return [float(len(self.y[i])) for i in ids]


@dataclass
class Outcome:
    """The last turn's global model, what each client keeps by its id, and the server's state."""

    model: Tree | None
    kept: dict[int, Any] = field(default_factory=dict)
    extra: dict[str, Any] = field(default_factory=dict)


def first_model(rng: np.random.Generator, model: Model, dim: int, hidden: int, classes: int) -> Tree:
    """A random initial tree for `Mlp` or `BnMlp`."""
    tree: Tree = {
        "body.weight": rng.normal(0.0, 0.7, (hidden, dim)),
        "body.bias": rng.normal(0.0, 0.2, hidden),
        "head.weight": rng.normal(0.0, 0.7, (classes, hidden)),
        "head.bias": rng.normal(0.0, 0.2, classes),
    }
    if model is BnMlp:
        tree |= {
            "norm.weight": rng.uniform(0.7, 1.3, hidden),
            "norm.bias": rng.normal(0.0, 0.2, hidden),
            "norm.running_mean": np.zeros(hidden),
            "norm.running_var": np.ones(hidden),
        }
    return tree


def epoch(rng: np.random.Generator, examples: int, size: int, smallest: int = 1) -> list[Array]:
    """One shuffled pass in batches of `size`, the last one short; one under `smallest` rows is left out."""
    order = rng.permutation(examples)
    parts = [order[start : start + size] for start in range(0, examples, size)]
    return [part for part in parts if len(part) >= smallest]


def make_world(
    seed: int,
    clients: int = 5,
    rounds: int = 3,
    phases: tuple[str, ...] = ("local",),
    *,
    dim: int = 3,
    hidden: int = 4,
    classes: int = 4,
    batch: int = 4,
    model: Model = Mlp,
) -> World:
    """A random federation: client i owns classes i and i + 1 (mod `classes`), no two as many examples.

    One or two clients are absent each turn; a turn is one or two epochs per phase, drawn per client; with
    batch norm no batch has fewer than two rows.
    """
    rng = np.random.default_rng(seed)
    centres = rng.normal(0.0, 1.5, (classes, dim))
    x, y = [], []
    for i, n in enumerate(5 + rng.permutation(3 * clients)[:clients]):
        labels = (i + rng.integers(0, 2, n)) % classes
        x.append(centres[labels] + rng.normal(0.0, 0.3, dim) + rng.normal(0.0, 1.0, (n, dim)))
        y.append(labels)
    smallest = 2 if model is BnMlp else 1
    turns = []
    for _ in range(rounds):
        present = int(rng.integers(max(1, clients - 2), max(2, clients)))
        ids = sorted(int(i) for i in rng.choice(clients, present, replace=False))
        batches = {
            i: {
                phase: [b for _ in range(rng.integers(1, 3)) for b in epoch(rng, len(y[i]), batch, smallest)]
                for phase in phases
            }
            for i in range(clients)
        }
        turns.append(Turn(ids, batches))
    return World(x, y, first_model(rng, model, dim, hidden, classes), turns, clients, model)


COMINGS = [[0, 1, 6, 10], [1, 2, 3], [], [0, 1, 2, 3, 6, 7], [0, 2, 4, 5], [8], [1, 3, 4, 5, 7], [2, 4, 5, 6]]


def late_world(seed: int, model: Model = Mlp, phases: tuple[str, ...] = ("local",)) -> World:
    """Eleven clients and eight rounds: 9 never comes, 10 only in the first; to the third nobody, to the sixth 8 alone.

    Those whose first round is one of the last four are 4, 5 (both in the fifth) and 8.
    """
    world = make_world(seed, 11, len(COMINGS), phases, model=model)
    for turn, ids in zip(world.turns, COMINGS, strict=True):
        turn.ids = list(ids)
    return world


def pooled(world: World, phase: str = "local") -> World:
    """One client with everybody's examples in order of client id.

    A turn runs the participants' batches one client after another.
    """
    offset = np.cumsum([0, *(len(y) for y in world.y)])
    turns = [
        Turn([0], {0: {phase: [offset[i] + rows for i in turn.ids for rows in turn.batches[i][phase]]}})
        for turn in world.turns
    ]
    return World([np.concatenate(world.x)], [np.concatenate(world.y)], world.first, turns, 1, world.model)
