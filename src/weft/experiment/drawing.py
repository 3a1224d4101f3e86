"""Drawing a run's turns: whose rows, for how many epochs, at which rate."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from weft.core.method import Phase
from weft.core.stream import stream
from weft.core.task import Turn
from weft.core.turn import Draw
from weft.data.federated import Indices, Rows
from weft.experiment.settings import RunSettings
from weft.local.batches import draw_turns


@dataclass(frozen=True, eq=False)
class Drawing:
    """Draws turns of a run's clients; the same ones wherever it is asked."""

    train: Rows
    settings: RunSettings
    dtype: torch.dtype
    device: torch.device
    pool: Indices | None = None  # rows that every client has in place of its own

    def __call__(self, number: int, ids: Tensor, phases: Mapping[str, Phase], past: Tensor) -> Turn:
        """The turns of the clients `ids` in round `number`."""
        names, settings = ids.tolist(), self.settings
        rows = [self.train.client(k) if self.pool is None else self.pool for k in names]
        epochs: int | list[int] = settings.epochs
        if settings.stragglers:
            late = stream(settings.seed, "stragglers", number)
            slow = late.random(self.train.clients) < settings.stragglers
            fewer = late.integers(1, settings.epochs + 1, self.train.clients)
            epochs = [int(fewer[k]) if slow[k] else settings.epochs for k in names]
        return draw_turns(
            rows,
            names,
            phases,
            past.tolist(),
            seed=settings.seed,
            number=number,
            epochs=epochs,
            batch_size=settings.batch_size,
            rate=rate(settings, number),
            dtype=self.dtype,
            device=self.device,
        )


class Once:
    """The turns of the latest round, drawn once for all runs that draw the same."""

    def __init__(self) -> None:
        self._drawn: dict[Any, Turn] = {}

    def by(self, draw: Draw, settings: RunSettings) -> Draw:
        """The turns that `draw` draws under these settings."""

        def drawn(number: int, ids: Tensor, phases: Mapping[str, Phase], past: Tensor) -> Turn:
            what = (number, tuple(ids.tolist()), tuple(phases.items()), tuple(past.tolist()), settings)
            if what not in self._drawn:
                for old in [key for key in self._drawn if key[0] != number]:
                    del self._drawn[old]
                self._drawn[what] = draw(number, ids, phases, past)
            return self._drawn[what]

        return drawn


def rate(settings: RunSettings, number: int) -> float:
    """The schedule's factor on the local learning rate in round `number` (1, 2, ...)."""
    done = (number - 1) / settings.rounds
    match settings.lr_schedule:
        case "exponential":
            return settings.lr_decay ** (number - 1)
        case "step":
            return settings.lr_decay ** ((done >= 0.5) + (done >= 0.75))
        case "cosine":
            return 0.5 * (1 + math.cos(math.pi * done))
    return 1.0
