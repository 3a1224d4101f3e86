"""A step as one launch on a GPU, where starting its kernels one by one takes longer than they run.

What is recorded reads and writes the addresses that it met, each time it is played. So the carry, a batch and its
number lie in tensors of the recording's own. What stays as it is, such as tables of examples, is read where it lies,
for as long as it lies there; what turns up elsewhere is copied from then on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from weft.local.script import Fold

Play = Callable[[], None]
Record = Callable[[Play], Play]
"""Something that was done -> the same again, with the same addresses."""


def captured(step: Callable[..., Sequence[Tensor]], instead: Fold, record: Record | None = None) -> Fold:
    """A fold over a step that is recorded when it first runs.

    Args:
        step: (*carry, *given, a batch, its number) -> the new carry, in part in the tensors of the old one.
        instead: runs in its place if the step cannot be recorded, for good.
        record: records what was done; by default as a CUDA graph.
    """
    recording: _Recording | None = _Recording(step, record or cuda_graph)

    def run(
        carry: list[Tensor], given: list[Tensor], batches: Tensor, numbers: Tensor, first: int, last: int
    ) -> list[Tensor]:
        nonlocal recording
        if recording and first < last:
            try:
                recording.prepare(carry, given, batches[first], numbers[first])
            except torch.OutOfMemoryError:  # a smaller program may be recorded
                raise
            except RuntimeError:  # an operation waits for the device, or is one of the host
                recording = None
            else:
                return recording.run(carry, batches, numbers, first, last)
        return instead(carry, given, batches, numbers, first, last)

    return run


class _Recording:
    def __init__(self, step: Callable[..., Sequence[Tensor]], record: Record) -> None:
        self.step, self.record = step, record
        self.carry: list[Tensor] = []
        self.batch: list[Tensor] = []  # with its number
        self.copies = dict[int, Tensor]()  # what is given and has turned up elsewhere
        self.read: list[int] = []  # addresses
        self.play: Play | None = None

    def prepare(self, carry: Sequence[Tensor], given: Sequence[Tensor], *batch: Tensor) -> None:
        """Be ready to run on these; the first time, and when something given lies elsewhere, by recording."""
        if self.play is None:
            self.carry, self.batch = [x.clone() for x in carry], [x.clone() for x in batch]
        for i, x in enumerate(given):
            if i in self.copies:
                self.copies[i].copy_(x)
            elif self.read and self.read[i] != x.data_ptr():
                self.copies[i], self.play = x.clone(), None
        if self.play is None:
            there = [self.copies.get(i, x) for i, x in enumerate(given)]
            self.play = self.record(partial(self._step, there))
            self.read = [x.data_ptr() for x in there]

    def _step(self, given: Sequence[Tensor]) -> None:
        for own, new in zip(self.carry, self.step(*self.carry, *given, *self.batch), strict=True):
            if new is not own:
                own.copy_(new)

    def run(self, carry: Sequence[Tensor], batches: Tensor, numbers: Tensor, first: int, last: int) -> list[Tensor]:
        assert self.play
        for own, x in zip(self.carry, carry, strict=True):
            own.copy_(x)
        for t in range(first, last):
            for own, x in zip(self.batch, (batches[t], numbers[t]), strict=True):
                own.copy_(x)
            self.play()
        return [x.clone() for x in self.carry]


WARM = 3
"""Times that a step runs before it is recorded, so that libraries have chosen and made what they need."""
_POOLS = dict[torch.device, Any]()


def cuda_graph(play: Play) -> Play:
    """What `play` launches, as one graph. Graphs share memory for what passes: they run one after the other."""
    here = torch.device("cuda", torch.cuda.current_device())
    pool = _POOLS.setdefault(here, torch.cuda.graph_pool_handle())
    stream: Any = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARM):
            play()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=pool, stream=stream):
        play()
    return graph.replay
