"""A profile of a run: where its time went, and how much of the work was padding."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from weft.core.method import Method
from weft.core.net import Net
from weft.core.task import Examples, Turn
from weft.core.turn import Execute
from weft.executors import Batched
from weft.experiment.account import PARTS, Work, lines, measured


@dataclass
class Profile:
    """An executor whose examples are counted while a run goes on, and which accounts for them at the end."""

    execute: Execute
    drawn: int = 0  # examples that count
    computed: int = 0  # padding included

    @property
    def compiled(self) -> bool:
        """Whether turns of a cohort so far were machine code."""
        return isinstance(self.execute, Batched) and self.execute.compiled

    def __call__(
        self, method: Method, net: Net, down: Any, mine: Any, examples: Examples, turn: Turn, public: Any
    ) -> Any:
        """Run the turns of a cohort."""
        answers = self.execute(method, net, down, mine, examples, turn, public)
        drawn = sum(int((s >= 0).sum()) for s in turn.steps.values())
        self.drawn += drawn
        self.computed += self.execute.computed(turn) if isinstance(self.execute, Batched) else drawn
        return answers

    def told(
        self, totals: Mapping[str, float], net: Net, examples: Examples, plan: str
    ) -> tuple[list[str], dict[str, Any]]:
        """The account of the rounds played: as lines, and as plain values."""
        seconds = {part: totals.get(f"{part}_seconds", 0.0) for part in PARTS}
        steps, device = totals.get("steps", 0.0), examples.x.device
        model = sum(x.numel() * x.element_size() for x in net.init(0).values())
        example = examples.look(torch.zeros(1, dtype=torch.int64, device=device))
        read = example.numel() * example.element_size() * self.drawn
        least = 3 * model * steps + read  # weights twice read, once written
        work = Work(steps, totals.get("flops", 0.0), least, self.drawn, self.computed)
        best = measured(device, examples.dtype)
        plain = {"plan": plan, "seconds": seconds, "work": work._asdict(), "ceilings": best._asdict()}
        return lines(seconds, work, best, plan), plain
