"""The step loop of stacked clients: outside the functorch layers, several slices of the stack side by side."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.func import vmap
from torch.utils._pytree import tree_flatten, tree_unflatten

from weft.core.parallel import side_by_side
from weft.core.stream import fold
from weft.core.task import Batch, Examples
from weft.local import graph
from weft.local.script import Fold

Places = np.ndarray[tuple[int], np.dtype[np.int64]]
Flags = np.ndarray[tuple[int], np.dtype[np.bool_]]


@dataclass(frozen=True, eq=False)
class Step:
    """One client's step, on flat tensors."""

    step: Callable[..., Any]  # (carry, batch, *given) -> new carry
    until: Callable[..., Tensor] | None  # (carry, *given) -> bool scalar, True once no step can change the carry
    identity: Any  # equal for steps that do the same
    spec: Any  # the structure of (carry, given)

    @property
    def width(self) -> int:
        """How many of the flat tensors are the carry; the others are given."""
        return int(self.spec.child(0).num_leaves)

    def __call__(self, flat: list[Tensor], batch: Batch, whole: bool = False) -> list[Tensor]:
        """The new carry; unless the batch is known to be `whole`, one without live rows changes nothing."""
        carry, given = tree_unflatten(flat, self.spec)
        new: list[Tensor] = tree_flatten(self.step(carry, batch, *given))[0]
        if whole:
            return new
        real = batch.live.sum() > 0
        return [torch.where(real, n, o) for n, o in zip(new, flat, strict=False)]

    def ended(self, flat: list[Tensor]) -> Tensor:
        """A bool scalar: no further step can change the carry."""
        carry, given = tree_unflatten(flat, self.spec)
        return torch.zeros((), dtype=torch.bool) if self.until is None else self.until(carry, *given)


class Stack:
    """Stacked clients, and the step that is folded over the batches of each."""

    def __init__(
        self, step: Step, dims: Sequence[int | None], examples: Examples, rows: Tensor, key: Tensor, state: list[Tensor]
    ) -> None:
        """What `scan` got, stacked.

        Args:
            step: of each client.
            dims: 0 for what is stacked in `state`, None for what all clients share.
            examples: of everybody.
            rows: int64 [clients, steps, batch], -1 = padding.
            key: int64 [clients].
            state: the carry, which is stacked and will be overwritten, then what is given.
        """
        self.step, self.dims, self.state, self.key, self.width = step, tuple(dims), state, key, step.width
        live = (rows >= 0).cpu().numpy()  # read once, so that nothing waits for the device
        self.real = np.asarray(live.any(2))  # [clients, steps]
        self.full = bool((live.all(2) == self.real).all())
        self.ends = (self.real * np.arange(1, self.real.shape[1] + 1)).max(1, initial=0)
        self.last = int(self.ends.max(initial=0))
        planned = _PLANNED.get()
        self.worth, self.workers = self.last * planned.rounds >= WORTH, planned.workers
        self.rows = rows.transpose(0, 1).contiguous()  # [steps, clients, batch]
        self.numbers = torch.arange(self.last, device=rows.device)
        self.tables, self.opened = opened(examples)

    def folded(self) -> list[Tensor]:
        """The carries after the last batch of each."""
        slices = np.array_split(np.arange(len(self.ends)), min(self.workers, max(1, len(self.ends))))
        with torch.enable_grad():  # as in other threads; oneDNN's recurrent layers keep only then what they need
            parts = side_by_side(self._slice, slices, self.workers)
        if len(parts) == 1:
            return parts[0]
        whole = self.state[: self.width]
        for members, part in zip(slices, parts, strict=True):
            for to, x in zip(whole, part, strict=True):
                if (there := to[members[0] : members[-1] + 1]).data_ptr() != x.data_ptr():  # not changed in place
                    there.copy_(x)
        return whole

    def _slice(self, members: Places) -> list[Tensor]:
        """The carries of neighbours in the stack after the last batch of each."""
        dims, width, ends = self.dims, self.width, self.ends
        here = slice(int(members[0]), int(members[-1]) + 1) if len(members) else slice(0)
        state = [s if d is None else s[here] for s, d in zip(self.state, dims, strict=True)]
        rows, key = self.rows[:, here].contiguous(), self.key[here]
        last, first = int(ends[members].max(initial=0)), here.start
        ended: list[Tensor] | None = None  # the carries of clients that have ended before others
        folds: dict[tuple[int, bool], Fold] = {}
        t = 0
        while t < last:
            over = np.flatnonzero(ends[members] == t)
            if len(over):
                ended = ended or [torch.empty_like(s) for s in state[:width]]
                _put(ended, members - first, state, over)
                stay = _staying(ends[members] > t)
                if len(stay) < len(members):
                    rest = torch.from_numpy(stay).to(rows.device)
                    members, rows, key = members[stay], rows[:, rest], key[rest]
                    state = [s if d is None else s[rest] for s, d in zip(state, dims, strict=True)]
            if self.step.until and bool(vmap(self.step.ended, in_dims=(list(dims),))(state).all()):
                last = t
                break
            going = members[ends[members] > t]
            whole: Flags = self.real[going, t : ends[going].min()].min(0)  # for all that go on: no need of a mask
            same = 1 if self.step.until else int((np.append(whole, ~whole[-1]) != whole[0]).argmax())
            alone = len(members) == 1
            if alone:  # nothing to stack: the operations of one client need no detours
                state = [s if d is None else s[0] for s, d in zip(state, dims, strict=True)]
            kind = (len(members), bool(whole[0]))  # all else that a step depends on stays as it is
            inputs = [*state[width:], *self.tables, key[0] if alone else key]
            batches = rows[:, 0] if alone else rows
            if kind not in folds:
                way = Way(None if alone else dims, kind[1], self.full and kind[1])
                folds[kind] = self._fold(way, [*state[:width], *inputs, batches[t], self.numbers[t]])
            state[:width] = folds[kind](state[:width], inputs, batches, self.numbers, t, t + same)
            if alone:
                state = [s if d is None else s[None] for s, d in zip(state, dims, strict=True)]
            t += same
        if ended is None:
            return state[:width]
        _put(ended, members - first, state, np.flatnonzero(ends[members] >= last))
        return ended

    def _fold(self, way: Way, sample: list[Tensor]) -> Fold:
        """The steps of a slice; if it is worth it, each as a flat graph of tensor operations."""
        stacked = stepping(self.step, self.opened, way)
        if not self.worth:
            return graph.fold(stacked)
        shapes = tuple((x.shape, x.dtype, x.device) for x in sample)
        found = (self.step.identity, self.step.spec, self.opened, way, shapes)
        known = _TRACES.get(found)
        if known is None:
            with _TRACING:  # tracing is not safe in two threads
                stacked(*sample)  # once outside the trace, so that a network holds what it needs in this thread
                known = _TRACES.get(found) or graph.traced(stacked, sample, self.width)
                _TRACES[found] = known
                while len(_TRACES) > _MOST_TRACES:
                    del _TRACES[next(iter(_TRACES))]
        return known


class Way(NamedTuple):
    """How a step is run."""

    dims: tuple[int | None, ...] | None  # what is stacked; None: one client alone, nothing is
    whole: bool  # every client has a batch
    full: bool  # and no batch has padding, so that nothing need be masked


def stepping(step: Step, opened: Opened, way: Way) -> Callable[..., Sequence[Tensor]]:
    """(*carry, *given, *tables, keys, a batch of each, its number) -> the new carry."""

    def stacked(*inputs: Tensor) -> Sequence[Tensor]:
        *flat, key, rows, number = inputs
        flat, tables = flat[: -len(opened.names)], flat[-len(opened.names) :]
        batch = batch_of(opened(tables), rows, key, number, way.full)
        one: Callable[..., list[Tensor]] = partial(step, whole=way.whole)
        if way.dims is not None:
            one = vmap(one, in_dims=(list(way.dims), Batch(*(0,) * 5)))  # type: ignore[arg-type]
        return one(flat, batch)

    return stacked


def _put(ended: list[Tensor], members: Places, state: list[Tensor], over: Places) -> None:
    """Write the carries of those in the stack whose places are `over` to where all carries are gathered."""
    for whole, part in zip(ended, state, strict=False):
        whole[torch.from_numpy(members[over]).to(whole.device)] = part[torch.from_numpy(over).to(part.device)]


def _staying(going: Flags) -> Places:
    """Places that stay in the stack: halves of it leave, so that steps have few shapes.

    A client that has ended may stay until then; what becomes of it there is not read.
    """
    size = len(going)
    while size > 1 and going.sum() <= -(-size // 2):
        size = -(-size // 2)
    return np.sort(np.argsort(~going, kind="stable")[:size])


def stacked_rows(rows: Tensor, workers: int = 1) -> int:
    """How many rows the loop over these batches computes for clients in one stack: int64 [clients, steps, batch]."""
    real = (rows >= 0).any(2).cpu().numpy()
    ends, computed = (real * np.arange(1, real.shape[1] + 1)).max(1, initial=0), 0
    for members in np.array_split(np.arange(len(ends)), workers):
        for t in range(int(ends[members].max(initial=0))):
            members = members[_staying(ends[members] > t)]
            computed += len(members) * rows.shape[2]
    return computed


def batch_of(examples: Examples, rows: Tensor, key: Tensor, t: int | Tensor, full: bool = False) -> Batch:
    """Batch `t` of one client or of many; `full`: it has no padding."""
    number = torch.zeros_like(key) + t
    live = torch.ones_like(rows, dtype=examples.dtype) if full else (rows >= 0).to(examples.dtype)
    return Batch(examples.look(rows), examples.label(rows), live, fold(key, number), number)


def opened(examples: Examples) -> tuple[list[Tensor], Opened]:
    """(the tensors of the examples, what makes examples of such tensors)."""
    names = [n for n in ("x", "y", "shift", "scale") if getattr(examples, n) is not None]
    return [getattr(examples, n) for n in names], Opened(tuple(names), examples.dtype)


class Opened(NamedTuple):
    """Makes examples of their tensors; equal for all examples of a kind."""

    names: tuple[str, ...]
    dtype: torch.dtype

    def __call__(self, tables: Sequence[Tensor]) -> Examples:
        """Examples of these tensors."""
        return Examples(**dict(zip(self.names, tables, strict=True)), dtype=self.dtype)


WORTH = 100
"""A trace costs about as much time as so many untraced steps."""
_MOST_TRACES = 64
_TRACES: dict[Any, Fold] = {}
_TRACING = threading.Lock()


class _Planned(NamedTuple):
    rounds: int = 1
    workers: int = 1


_ONCE = _Planned()
_PLANNED: ContextVar[_Planned] = ContextVar("planned", default=_ONCE)


@contextmanager
def repeated(rounds: int, workers: int = 1) -> Iterator[None]:
    """Inside, each loop over steps is expected to run once in every one of so many rounds, on so many cores.

    Whether a step is traced follows from that and from the steps of a round, never from what ran before or from the
    clock: a traced step rounds differently, and a resumed run must have the bits of one that was never stopped.
    """
    token = _PLANNED.set(_Planned(rounds, workers))
    try:
        yield
    finally:
        _PLANNED.reset(token)
