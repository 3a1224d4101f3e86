"""Many clients as one program: the turns of a cohort under `vmap`, in chunks that fit, several at a time."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.func import vmap
from torch.utils._pytree import tree_map

from weft.core.allocator import keep_freed_memory
from weft.core.method import Method
from weft.core.net import Net
from weft.core.parallel import side_by_side
from weft.core.task import Data, Examples, Reply, Task, Turn
from weft.core.tree import taken
from weft.core.turn import Mine, take_turn
from weft.executors.machine import in_machine_code
from weft.executors.meeting import Request
from weft.executors.plan import COMPILE
from weft.local.stack import repeated, stacked_rows


@dataclass
class Batched:
    """The batched executor."""

    chunk: int = 256  # most clients in one program; halved for good when memory runs out
    workers: int = 1  # cores: with fewer clients in a program each works at programs of its own, else at its slices
    rounds: int = 1  # how many rounds are planned, so that what pays only in long runs is left out of short ones
    compile: str = "auto"  # turns of small networks in machine code: always, never, or if the rounds repay the compiler
    compiled: bool = False  # whether turns of a cohort so far were
    _lately: bool = False  # whether those of the last cohort were

    def __call__(
        self, method: Method, net: Net, down: Any, mine: Mine, examples: Examples, turn: Turn, public: Any
    ) -> Reply[Any, Mine]:
        """Run the turns of a cohort; clients with like numbers of steps share a chunk, so that little is padding."""
        keep_freed_memory()
        self._lately = False
        asked = Request(method, net, down, mine, examples, turn, public)
        steps = self.rounds * sum(int((s >= 0).any(2).sum()) for s in turn.steps.values())
        compiled = self.compile == "always" or (self.compile == "auto" and self.chunk > 1 and steps >= COMPILE)
        chunks, workers = self._chunks(turn), self.workers if self._apart else 1
        run = partial(self._as_fits, asked, compiled and turn.key.device.type == "cpu")
        parts = [part for some in side_by_side(run, chunks, workers) for part in some]
        return _in_order(parts, torch.cat(chunks), self.workers)

    def _as_fits(self, asked: Request, compiled: bool, here: Tensor) -> list[Reply[Any, Mine]]:
        """The answers of these members, in one part, or in several if memory runs out."""
        workers = 1 if self._apart else self.workers
        try:
            part = _part(asked, here)
            if compiled and (reply := in_machine_code(part, workers, ends=self.compile == "always")):
                self.compiled = self._lately = True
                return [reply]
            with repeated(self.rounds, workers):
                return [_together(*part)]
        except (torch.OutOfMemoryError, MemoryError) as error:
            if len(here) == 1:
                raise
            self.chunk = half = len(here) // 2
            warnings.warn(
                f"out of memory with {len(here)} clients at once: going on with {half} ({error})", stacklevel=2
            )
        return [reply for piece in torch.split(here, half) for reply in self._as_fits(asked, compiled, piece)]

    def computed(self, turn: Turn) -> int:
        """How many examples were computed in these turns, the last ones, padding included."""
        if self._lately:  # a client makes its own steps only
            return sum(int((s >= 0).any(2).sum()) * s.shape[2] for s in turn.steps.values())
        return sum(
            stacked_rows(_trimmed(steps[here.to(steps.device)]), 1 if self._apart else self.workers)
            for here in self._chunks(turn)
            for steps in turn.steps.values()
        )

    @property
    def _apart(self) -> bool:
        """Each worker has programs of its own; else all work at the steps of one program."""
        return self.chunk < self.workers

    def _chunks(self, turn: Turn) -> tuple[Tensor, ...]:
        """Places of the cohort's members, those with like numbers of steps in a chunk, dealt among its workers."""
        steps = sum(((s >= 0).any(2).sum(1) for s in turn.steps.values()), torch.zeros_like(turn.key))
        order = torch.argsort(steps, descending=True, stable=True).cpu()
        chunks = torch.split(order, self.chunk)
        if self._apart or int(steps.min()) == int(steps.max()):
            return chunks
        return tuple(torch.cat([chunk[i :: self.workers] for i in range(self.workers)]) for chunk in chunks)


def _in_order(parts: list[Reply[Any, Mine]], places: Tensor, workers: int) -> Reply[Any, Mine]:
    """One stack of all parts, whose rows go to these places."""
    if len(parts) == 1 and bool((places == torch.arange(len(places))).all()):
        return parts[0]
    whole: Reply[Any, Mine] = tree_map(lambda x: x.new_empty(len(places), *x.shape[1:]), parts[0])
    where = torch.split(places, [len(p.weight) for p in parts])

    def put(i: int) -> None:
        tree_map(lambda to, x: to.index_copy_(0, where[i].to(x.device), x), whole, parts[i])

    side_by_side(put, range(len(parts)), workers)
    return whole


def _part(asked: Request, here: Tensor) -> Request:
    """What is asked of these members of a cohort."""
    mine, turn = taken((asked.mine, asked.turn), here)
    turn = turn._replace(steps={k: _trimmed(s) for k, s in turn.steps.items()})
    down = taken(asked.down, here) if asked.method.private_send else asked.down
    return asked._replace(down=down, mine=mine, turn=turn)


def _together(
    method: Method, net: Net, down: Any, mine: Mine, examples: Examples, turn: Turn, public: Any
) -> Reply[Any, Mine]:
    def one(down: Any, mine: Mine, turn: Turn) -> Reply[Any, Mine]:
        return take_turn(method, net, Task(down, mine, Data(examples, turn), public))

    dims = (0 if method.private_send else None, 0, 0)
    return vmap(one, in_dims=dims, randomness="error")(down, mine, turn)


def _trimmed(steps: Tensor) -> Tensor:
    """Without the steps and rows that are padding for every client of the chunk."""
    real = steps >= 0
    last = int(real.any(2).any(0).sum())
    wide = int(real.any(1).any(0).sum())
    return steps[:, :last, : max(wide, 1)]
