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
from weft.executors import Batched, Plan
from weft.experiment.account import PARTS, Work, lines, measured


@dataclass
class Profile:
    """Counts examples while a run goes on, and accounts for it at the end."""

    drawn: int = 0  # examples that count
    computed: int = 0  # padding included

    def around(self, execute: Execute) -> Execute:
        """The executor, with the examples that it computes counted."""

        def counted(method: Method, net: Net, down: Any, mine: Any, examples: Examples, turn: Turn, public: Any) -> Any:
            drawn = sum(int((s >= 0).sum()) for s in turn.steps.values())
            self.drawn += drawn
            self.computed += execute.computed(turn) if isinstance(execute, Batched) else drawn
            return execute(method, net, down, mine, examples, turn, public)

        return counted

    def told(
        self, totals: Mapping[str, float], net: Net, examples: Examples, plan: Plan
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
        plain = {"plan": str(plan), "seconds": seconds, "work": work._asdict(), "ceilings": best._asdict()}
        return lines(seconds, work, best, str(plan)), plain
