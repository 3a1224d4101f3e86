"""The plan: small steps are stacked, large ones are not, and nothing in it depends on the clock."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.laws.toys import gap, make, train

from weft.core.task import Turn
from weft.executors import Batched, batched, cores, plan

planning = __import__("weft.executors.plan", fromlist=["plan"])
CPU = torch.device("cpu")


def test_small_steps_share_a_program_and_large_ones_have_their_own() -> None:
    small = plan(CPU, flops_per_step=planning.FULL / 100, bytes_per_client=10**5)
    large = plan(CPU, flops_per_step=planning.FULL, bytes_per_client=10**5)
    assert (small.chunk, large.chunk) == (256, 1) and small.workers == large.workers == cores()
    assert str(large).startswith("one client in one program")


def test_what_the_user_chose_stands() -> None:
    chosen = plan(CPU, flops_per_step=planning.FULL, bytes_per_client=1, chunk=7, workers=3)
    assert (chosen.chunk, chosen.workers, chosen.why) == (7, 3, "as chosen")


def test_chunks_fit_into_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "memory", lambda device: 10**9)
    found = plan(CPU, flops_per_step=1, bytes_per_client=4 * 10**7, workers=2)
    assert found.chunk == 10**9 // (planning.SHARE * 2 * 4 * 10**7) == 3 and "memory" in found.why
    assert plan(CPU, flops_per_step=1, bytes_per_client=10**12, workers=2).chunk == 1


@pytest.mark.parametrize(("size", "clients"), [(planning.CACHE // 50, 100), (planning.CACHE, 4), (2**10, 256)])
def test_slices_stay_in_the_caches_of_a_cpu(size: int, clients: int) -> None:
    assert plan(CPU, flops_per_step=1, bytes_per_client=size, workers=2).chunk == clients
    assert plan(torch.device("cuda"), flops_per_step=1, bytes_per_client=size, room=2**50).chunk == 1024


@pytest.mark.parametrize("workers", [1, 2])
def test_out_of_memory_halves_the_chunk_and_changes_nothing(workers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    together, tried = batched._together, []

    def tight(*request: Any) -> Any:
        tried.append(len(request[-2].key))
        if tried[-1] > 1:
            raise torch.OutOfMemoryError("no room")
        return together(*request)

    method = make("scaffold")
    whole = train(method, Batched())
    monkeypatch.setattr(batched, "_together", tight)
    execute = Batched(4, workers)
    with pytest.warns(UserWarning, match="out of memory with .* clients at once: going on with"):
        assert gap(whole, train(method, execute)) <= 1e-9
    assert execute.chunk == 1 and max(tried) > 1


@pytest.mark.parametrize(
    ("steps", "stacked"),
    [([3, 1, 1], 3 + 1 + 1), ([3, 3, 1], 3 + 2 + 2), ([3, 3, 3, 1], 4 + 4 + 4)],  # the last: most of them go on
)
def test_how_many_examples_are_computed(steps: list[int], stacked: int) -> None:
    """By hand, with two examples in a batch."""
    rows = torch.full((len(steps), 3, 2), -1)
    for client, count in enumerate(steps):
        rows[client, :count] = 0
    assert Batched(4).computed(turns(rows)) == 2 * stacked
    assert Batched(1).computed(turns(rows)) == 2 * sum(steps)


def turns(rows: torch.Tensor) -> Any:
    zero = torch.zeros(len(rows))
    return Turn(rows[:, 0], zero, {"local": rows}, zero.long(), zero, zero.long())
