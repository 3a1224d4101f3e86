"""Loops over steps that are noted, not run: in the graph of a turn, one operation stands for each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import NamedTuple

import torch
from torch import Tensor

from weft.compiled.scan import noted
from weft.core.task import Examples
from weft.local.stack import Opened, Step, opened


class Loop(NamedTuple):
    """A loop over the batches of a phase."""

    step: Step
    opened: Opened  # makes examples of the tables
    like: list[tuple[torch.Size, torch.dtype]]  # the carry and what is given
    batch: int  # rows of a batch


noting: ContextVar[list[Loop] | None] = ContextVar("noting", default=None)
"""Where loops are noted; None: they are run."""


@contextmanager
def notes() -> Iterator[list[Loop]]:
    """Inside, loops over steps are noted."""
    loops: list[Loop] = []
    token = noting.set(loops)
    try:
        yield loops
    finally:
        noting.reset(token)


def note(
    loops: list[Loop], step: Step, examples: Examples, rows: Tensor, key: Tensor, flat: Sequence[Tensor]
) -> list[Tensor]:
    """A loop as an operation, which gives what has the shapes of the last carry; see `weft.compiled.scan`."""
    tables, closed = opened(examples)
    loops.append(Loop(step, closed, [(x.shape, x.dtype) for x in flat], rows.shape[1]))
    carry: list[Tensor] = noted(len(loops) - 1, step.width, rows, key, list(flat), tables)
    return carry
