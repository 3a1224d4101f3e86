"""A recorded step: where it reads and writes, and when it must be recorded anew."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from weft.local import capture
from weft.local.graph import fold

STEPS = 4


class Recorder:
    """Plays on the addresses that it met, as a CUDA graph does, and counts."""

    def __init__(self) -> None:
        self.recorded = self.played = 0

    def __call__(self, play: Callable[[], None]) -> Callable[[], None]:
        self.recorded += 1
        for _ in range(capture.WARM):
            play()

        def again() -> None:
            self.played += 1
            play()

        return again


def step(total: Tensor, seen: Tensor, table: Tensor, rate: Tensor, batch: Tensor, number: Tensor) -> Sequence[Tensor]:
    """One part of the carry is updated in place, the other is new."""
    new = seen + number
    total += rate * table[batch].sum(0)
    return total, new


def inputs(seed: int) -> tuple[list[Tensor], list[Tensor], Tensor, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    carry = [torch.randn(3, generator=draw), torch.zeros((), dtype=torch.int64)]
    given = [torch.randn(7, 3, generator=draw), torch.rand((), generator=draw)]
    return carry, given, torch.randint(0, 7, (STEPS, 2), generator=draw), torch.arange(STEPS)


def same(run: Any, carry: list[Tensor], *rest: Any) -> None:
    want = fold(step)([x.clone() for x in carry], *rest)
    got = run([x.clone() for x in carry], *rest)
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


def test_it_is_recorded_once_and_again_when_what_is_given_lies_elsewhere() -> None:
    record = Recorder()
    run = capture.captured(step, fold(step), record)
    carry, given, batches, numbers = inputs(0)
    same(run, carry, given, batches, numbers, 0, STEPS)
    assert (record.recorded, record.played) == (1, STEPS)
    given[1].mul_(2)  # in place: it lies where it lay
    same(run, carry, given, batches, numbers, 1, 3)
    assert (record.recorded, record.played) == (1, STEPS + 2)
    for seed in (1, 2, 3):  # the rate turns up elsewhere each time; the table stays
        other, elsewhere, batches, numbers = inputs(seed)
        same(run, other, [given[0], elsewhere[1]], batches, numbers, 0, STEPS)
        assert record.recorded == 2
    other, elsewhere, batches, numbers = inputs(4)
    same(run, other, elsewhere, batches, numbers, 0, STEPS)
    assert record.recorded == 3


def test_what_is_given_is_never_written() -> None:
    run = capture.captured(step, fold(step), Recorder())
    carry, given, batches, numbers = inputs(0)
    first, table = given[1], given[0]
    was = [x.clone() for x in (first, table, *carry)]
    run(carry, given, batches, numbers, 0, STEPS)
    run(carry, [table.clone(), first + 1], batches, numbers, 0, STEPS)
    assert all(torch.equal(a, b) for a, b in zip((first, table, *carry), was, strict=True))


def test_results_are_not_overwritten_by_the_next_run() -> None:
    run = capture.captured(step, fold(step), Recorder())
    carry, *rest = inputs(0)
    result = run(carry, *rest, 0, STEPS)
    was = [x.clone() for x in result]
    run(result, *rest, 0, STEPS)
    assert all(torch.equal(a, b) for a, b in zip(result, was, strict=True))


def test_no_steps_change_nothing() -> None:
    record = Recorder()
    carry, *rest = inputs(0)
    assert capture.captured(step, fold(step), record)(carry, *rest, 2, 2) is carry and not record.recorded


def test_what_cannot_be_recorded_runs_all_the_same() -> None:
    tried = []

    def refuse(play: Callable[[], None]) -> Callable[[], None]:
        tried.append(play)
        raise RuntimeError("operation not permitted when stream is capturing")

    run = capture.captured(step, fold(step), refuse)
    for seed in (0, 1):
        carry, *rest = inputs(seed)
        same(run, carry, *rest, 0, STEPS)
    assert len(tried) == 1


def test_running_out_of_memory_is_said() -> None:
    """So that the executor halves its program; the half is another fold."""

    def refuse(play: Callable[[], None]) -> Callable[[], None]:
        raise torch.OutOfMemoryError("no room")

    carry, *rest = inputs(0)
    with pytest.raises(torch.OutOfMemoryError):
        capture.captured(step, fold(step), refuse)(carry, *rest, 0, STEPS)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_cuda_graph_gives_the_same() -> None:
    run = capture.captured(step, fold(step))
    for seed in range(3):
        there = [torch.utils._pytree.tree_map(lambda x: x.cuda(), part) for part in inputs(seed)]
        same(run, *there, 0, STEPS)
