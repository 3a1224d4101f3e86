"""The turns of a cohort in machine code: one client after the other on every core.

A turn is traced once, for one client, to a graph in which an operation stands for each loop over steps; the graph and
those of the steps become one program (see `weft.compiled`).
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.fx import GraphModule
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from weft.compiled import WAYS, Program, Uncompiled, written
from weft.core.lift import taken_apart
from weft.core.parallel import side_by_side
from weft.core.task import Data, Reply, Task
from weft.core.turn import Mine, take_turn
from weft.executors.meeting import Request
from weft.local.graph import shortened
from weft.local.noted import Loop, notes
from weft.local.stack import Way, opened, stepping

CACHE = 2**20
"""Bytes that a client may carry through its steps: they have to stay in a core's own cache."""


def in_machine_code(asked: Request, workers: int, ends: bool) -> Reply[Any, Mine] | None:
    """The answers of the members of a cohort; None if their turns cannot be had in machine code.

    Args:
        asked: of the cohort.
        workers: threads.
        ends: also turns with a loop that may end before its batches do, of which nobody knows whether it pays.
    """
    method, net, down, mine, examples, turn, public = asked
    full = all(bool(((s >= 0).all(2) == (s >= 0).any(2)).all()) for s in turn.steps.values())
    steps = {name: _padded(s, _rounded(s.shape[1])) for name, s in turn.steps.items()}
    wide = max([s.shape[1] * s.shape[2] for s in steps.values()], default=0)  # so that no length is one more program
    turn = turn._replace(steps=steps, rows=_padded(turn.rows, max(wide, _rounded(turn.rows.shape[1]))))
    tables, closed = opened(examples)
    apart = tree_flatten((down, mine, turn) if method.private_send else (mine, turn))[0]
    shared = () if public is None else (public,)
    inputs, spec = tree_flatten((tables, shared, down, mine, turn))  # what each client has its own of comes last
    if not all(isinstance(x, Tensor) for x in inputs):
        return None
    stacked = tuple(i >= len(inputs) - len(apart) for i in range(len(inputs)))
    inputs = [x.contiguous() for x in inputs]

    def one(*leaves: Tensor) -> tuple[list[Tensor], TreeSpec]:
        tables, shared, down, mine, turn = tree_unflatten(leaves, spec)
        return tree_flatten(take_turn(method, net, Task(down, mine, Data(closed(tables), turn), *shared)))

    sample = [x[0] if s else x.detach() for x, s in zip(inputs, stacked, strict=True)]  # no tensor twice
    kind = _Kind(stacked, full, len(tables), ends)
    make, leaves = taken_apart((method.work, {name: channel.encode for name, channel in method.up.items()}, net))
    shapes = tuple((x.shape, x.dtype) for x in sample)
    known = _known((make, tuple((type(x), x) for x in leaves), kind, spec, closed, shapes), one, sample)
    if known is None:
        return None
    results = known.program.results(clients := len(turn.key))

    def run(members: np.ndarray[Any, Any]) -> None:
        known.program(inputs, results, int(members[0]), len(members))

    pieces = np.array_split(np.arange(clients), min(4 * workers, clients))  # small, so that no core waits for long
    side_by_side(run, pieces, workers)
    reply: Reply[Any, Mine] = tree_unflatten(results, known.spec)
    return reply


class _Kind(NamedTuple):
    stacked: tuple[bool, ...]  # of which inputs each client has its own
    full: bool  # no batch has padding
    tables: int  # how many inputs are the tables of the examples; they come first
    ends: bool  # loops may end before their batches do


class _Known(NamedTuple):
    program: Program
    spec: TreeSpec  # of what a turn answers


_PROGRAMS: dict[Any, _Known | None] = {}
_MOST = 64
_COMPILING = threading.Lock()


def _known(key: Any, one: Callable[..., tuple[list[Tensor], TreeSpec]], sample: Sequence[Tensor]) -> _Known | None:
    """The program of a turn; None if there is no C for it, or no compiler. Its key is that of the turn and more."""
    try:
        hash(key)
    except TypeError:  # a method that holds what cannot be compared
        return None
    turn, kind = key[:3], key[2]
    with _COMPILING:
        if turn in _PROGRAMS:  # no shape would make it a program
            return None
        if key not in _PROGRAMS:
            made: _Known | None = None
            try:
                made = _PROGRAMS[key] = _made(one, sample, kind)
            except (MemoryError, torch.OutOfMemoryError):
                raise
            except Exception as error:
                _PROGRAMS[turn] = None
                if not isinstance(error, Uncompiled):  # torch may be able to do it all the same
                    warnings.warn(f"turns are not machine code, as they could not be written: {error!r}", stacklevel=2)
            while len(_PROGRAMS) > _MOST:
                del _PROGRAMS[next(iter(_PROGRAMS))]
            return made
        return _PROGRAMS[key]


def _made(one: Callable[..., tuple[list[Tensor], TreeSpec]], sample: Sequence[Tensor], kind: _Kind) -> _Known:
    with notes():
        spec = one(*sample)[1]  # outside the trace, so that a network holds what it needs in this thread
    with notes() as loops:
        turn = shortened(lambda *inputs: one(*inputs)[0], sample, 0, WAYS)
    steps = [_step(loop, sample[: kind.tables], kind) for loop in loops]
    return _Known(written(turn, steps, sample, kind.stacked), spec)


def _step(loop: Loop, tables: Sequence[Tensor], kind: _Kind) -> tuple[GraphModule, GraphModule | None]:
    """(a step of one client, whether no further one can change anything) as graphs."""
    flat = [torch.ones(shape, dtype=dtype) for shape, dtype in loop.like]  # by which one may divide
    width = loop.step.width
    if loop.step.until and not kind.ends:
        raise Uncompiled("a loop may end before its batches do")
    if sum(x.nbytes for x in flat[:width]) > CACHE:
        raise Uncompiled("what a client carries does not stay in a core's cache")
    key, number, *rows = torch.zeros(2 + loop.batch, dtype=torch.int64)
    batch = torch.stack(rows)
    step = stepping(loop.step, loop.opened, Way(None, True, kind.full))
    step(*flat, *tables, key, batch, number)
    graph = shortened(step, [*flat, *tables, key, batch, number], width, WAYS)
    ended = shortened(lambda *flat: [loop.step.ended(list(flat))], flat, 0, WAYS) if loop.step.until else None
    return graph, ended


def _rounded(length: int) -> int:
    """One of few lengths; there is a program for each."""
    found = 1
    while found < length:
        found *= 4
    return found


def _padded(rows: Tensor, length: int) -> Tensor:
    whole = rows.new_full((len(rows), length, *rows.shape[2:]), -1)
    whole[:, : rows.shape[1]] = rows
    return whole
