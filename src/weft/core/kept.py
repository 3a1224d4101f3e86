"""What clients keep between their turns, so that memory follows the clients seen, and the disk the population."""

from __future__ import annotations

import math
import mmap
import os
import shutil
import tempfile
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

BUDGET = max(2**26, os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 32) if hasattr(os, "sysconf") else 2**28
"""Bytes of kept state of one group of clients above which it lives in a memory-mapped file: a part of the memory, since
a mapped page costs a fault whenever it is read anew."""
_BLOCK = 2**24


class Kept:
    """One row of state per client, all alike at first; rows are written when a client's turn has ended."""

    def __init__(self, first: Any, population: int, folder: Path | None = None, budget: int = BUDGET) -> None:
        """`first`: a structure of tensors. `folder`: where a paged file goes, by default the system's temporary one."""
        self._like = first
        self._first, self._spec = tree_flatten(first)
        self._seen = torch.zeros(population, dtype=torch.bool)
        self._at = torch.arange(population)  # where each member's row lies
        self._where, self._budget = folder, budget
        self._folder: Path | None = None
        self._files: list[np.memmap[Any, Any]] = []
        self._rows: list[Tensor] = []
        self._allocate(self._first)

    def _allocate(self, likes: list[Tensor]) -> None:
        shapes = [(len(self._seen), *x.shape) for x in likes]
        size = sum(math.prod(s) * x.element_size() for s, x in zip(shapes, likes, strict=True))
        if size <= self._budget:  # pages of an empty tensor are only committed when a row is written
            self._rows += [torch.empty(s, dtype=x.dtype) for s, x in zip(shapes, likes, strict=True)]
            return
        if self._folder is None:
            self._folder = Path(tempfile.mkdtemp(prefix="weft-kept-", dir=self._where))
            weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
        for shape, like in zip(shapes, likes, strict=True):
            path = self._folder / f"{len(self._rows)}.rows"
            file = np.memmap(path, torch.empty((), dtype=like.dtype).numpy().dtype, "w+", shape=shape)
            file._mmap.madvise(mmap.MADV_RANDOM)  # type: ignore[attr-defined]  # else a row is read with its neighbours
            self._files.append(file)
            self._rows.append(torch.from_numpy(file))

    def arrange(self, order: Tensor) -> None:
        """Let the rows lie in this order of all members (int64 [population]); nobody may have had a turn.

        Those that are read together should be neighbours, since `reading` need not copy them then.
        """
        assert not self._seen.any(), "rows cannot be moved"
        self._at[order] = torch.arange(len(order))

    def places(self, members: Tensor) -> Tensor:
        """Where the rows of these members lie, int64 [k]."""
        return self._at[members]

    def gather(self, members: Tensor) -> Any:
        """The states of these members (int64 [k]), stacked along a new first axis."""
        seen, at = self._seen[members].nonzero()[:, 0], self._at[members]
        if len(seen) == len(members):
            rows = [row.index_select(0, at) for row in self._rows]
        else:
            rows = [first.expand(len(members), *first.shape).clone() for first in self._first]
            for to, row in zip(rows, self._rows, strict=True):
                to.index_copy_(0, seen, row.index_select(0, at[seen]))
        self._release()
        return tree_unflatten(rows, self._spec)

    @contextmanager
    def reading(self, members: Tensor) -> Iterator[tuple[Any, bool]]:
        """(the states of these members, whether they are stacked) to look at, without a copy where that can be.

        Members that never had a turn are all alike, so that if no other is asked for there is one state, not stacked.
        Members that lie in a row come as a part of the store: nobody may write to what is given, or use it after the
        block.

        Raises:
            RuntimeError: somebody did write to it.
        """
        seen, at, none = self._seen[members], self._at[members], len(members) == 0
        if not none and not seen.any():
            states, stacked = tree_unflatten(self._first, self._spec), False
        elif not none and seen.all() and bool((at.diff() == 1).all()):
            start, stacked = int(at[0]), True
            states = tree_unflatten([row[start : start + len(at)] for row in self._rows], self._spec)
        else:
            states, stacked = self.gather(members), True
        before = self._versions()
        yield states, stacked
        self._release()
        if self._versions() != before:
            raise RuntimeError("what clients keep was written to where it may only be read: change a clone of it")

    def _versions(self) -> list[int]:
        return [x._version for x in (*self._rows, *self._first)]  # torch counts what is done to a tensor in place

    def scatter(self, members: Tensor, states: Any) -> None:
        """Write the states of these members; entries that were not there before start as zeros for the others."""
        leaves, self._spec = tree_flatten(_ordered(states, self._like))
        added = [torch.zeros_like(x[0], device="cpu") for x in leaves[len(self._rows) :]]
        self._allocate(added)
        self._first += added
        for row in self._rows[len(self._rows) - len(added) :]:
            row[self._at[self._seen]] = 0
        for row, new in zip(self._rows, leaves, strict=True):
            row.index_copy_(0, self._at[members], new.detach().to(row.device, row.dtype))
        self._seen[members] = True
        self._release()

    @property
    def block(self) -> int:
        """How many members' states may be copied at once where those of all would be too many."""
        return max(1, _BLOCK // max(1, self.row_bytes))

    @property
    def row_bytes(self) -> int:
        """Bytes of one member's state."""
        return sum(x.numel() * x.element_size() for x in self._first)

    def saved(self) -> dict[str, Any]:
        """The members that ever had a turn, and their states as tensors that come in parts, as they are asked for."""
        members = self.seen()
        return {"members": members, "states": tree_unflatten([_Part(self, r, members) for r in self._rows], self._spec)}

    def seen(self) -> Tensor:
        """The members that ever had a turn, int64, ascending."""
        return self._seen.nonzero()[:, 0]

    def _release(self) -> None:
        for file in self._files:  # mapped pages count as resident memory until they are given back
            file._mmap.madvise(mmap.MADV_DONTNEED)  # type: ignore[attr-defined]


@dataclass(frozen=True, eq=False)
class _Part:
    """One entry of some members' states, which is copied a block at a time."""

    store: Kept
    rows: Tensor
    members: Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self.members), *self.rows.shape[1:])

    @property
    def dtype(self) -> torch.dtype:
        return self.rows.dtype

    def blocks(self) -> Iterator[Tensor]:
        for some in torch.split(self.members, self.store.block):
            yield self.rows.index_select(0, self.store.places(some))
            self.store._release()


def _ordered(state: Any, like: Any) -> Any:
    """The state with its dictionaries in the order of the first ones, since rows are told apart by their places."""
    if isinstance(state, dict) and isinstance(like, dict):
        order = [*(k for k in like if k in state), *(k for k in state if k not in like)]
        return {k: _ordered(state[k], like.get(k)) for k in order}
    if isinstance(state, tuple | list) and isinstance(like, tuple | list) and len(state) == len(like):
        parts = [_ordered(x, y) for x, y in zip(state, like, strict=True)]
        return type(state)(*parts) if hasattr(state, "_fields") else type(state)(parts)
    return state
