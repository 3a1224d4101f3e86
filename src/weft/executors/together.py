"""Several runs as one program: their cohorts side by side in one call of an executor.

The runs may have other seeds, other clients and other batches, which are data anyway. The numbers in which their
methods differ, such as learning rates, become data too: each client brings those of its run.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from weft.core.channel import Channel
from weft.core.lift import Number, Unlike, numbers, rebuilt, taken_apart
from weft.core.method import Method
from weft.core.net import Net
from weft.core.task import Reply, Task, Turn
from weft.core.turn import Execute, Mine
from weft.executors.meeting import Answer, Request


class Member(NamedTuple):
    """What a client brings along that is not the same for all runs."""

    run: Tensor  # its place among the runs of the request
    numbers: Tensor  # [numbers in which the methods differ]
    mine: Any


class OneTurn(NamedTuple):
    """A turn of several methods as one, whose clients are `Member`s."""

    method: Method
    numbers: list[Number]


def chain(method: Method) -> list[Method]:
    """The turns of a round, and of the opening before the first one."""
    others = [turn for part in (method.next, method.opening) if part for turn in chain(part)]
    return [method, *others]


def as_one(methods: Sequence[Method]) -> list[OneTurn]:
    """For each turn of a round the turns of several methods as one.

    Raises:
        Unlike: their clients do not do the same; the message is the name of the part that differs.
    """
    chains = [chain(m) for m in methods]
    if len({len(c) for c in chains}) > 1:
        raise Unlike("turns in a round")
    return [_as_one(turns) for turns in zip(*chains, strict=True)]


def _as_one(methods: Sequence[Method]) -> OneTurn:
    first = methods[0]
    for part in ("phases", "private_send", "needs", "up"):
        ways = [getattr(m, part) for m in methods]
        if any(list(w) != list(ways[0]) if isinstance(w, Mapping) else w != ways[0] for w in ways):
            raise Unlike(part)
    codecs = numbers([{name: channel.encode for name, channel in m.up.items()} for m in methods])
    if codecs:
        raise Unlike(f"codec {codecs[0].name}")
    found = numbers([m.work for m in methods])
    _, leaves = taken_apart(first.work)

    def work(net: Net, task: Task[Any, Member]) -> Reply[Any, Any]:
        member: Member = task.mine
        down = task.down
        if not first.private_send:
            down = tree_map(lambda x: x.index_select(0, member.run[None])[0], down)
        put = dict(zip((n.place for n in found), member.numbers.unbind(), strict=True))
        same = rebuilt(first.work, (put.get(i, leaf) for i, leaf in enumerate(leaves)))
        reply: Reply[Any, Any] = same(net, task._replace(down=down, mine=member.mine))
        return reply

    up = {name: Channel(channel.encode) for name, channel in first.up.items()}
    return OneTurn(replace(first, work=work, up=up, next=None), found)


class Together:
    """Answers the requests of runs whose methods are alike, as many in one call of an executor as fit together."""

    def __init__(self, methods: Sequence[Method], execute: Execute) -> None:
        """`methods`: of each run; `execute`: an executor. Raises `Unlike` if they are not alike."""
        self._turns = as_one(methods)
        self._chains = [chain(m) for m in methods]
        self._execute = execute

    def __call__(self, requests: Mapping[int, Request]) -> dict[int, Answer]:
        """Run -> its answer."""
        sets: dict[Any, dict[int, Request]] = {}
        for run, request in requests.items():
            sets.setdefault(self._kind(run, request), {})[run] = request
        answers: dict[int, Answer] = {}
        for (place, *_), joined in sets.items():
            answers |= self._joined(self._turns[place], joined)
        return answers

    def _kind(self, run: int, request: Request) -> tuple[Any, ...]:
        """Requests of one kind fit together: the same turn, network and examples, and states of the same shapes."""
        place = next(i for i, turn in enumerate(self._chains[run]) if turn is request.method)
        per_client = (request.down, request.mine) if request.method.private_send else request.mine
        leaves, spec = tree_flatten((request.down, request.mine))
        stacked = len(tree_flatten(per_client)[0])  # these stand last
        shapes = [x.shape[i >= len(leaves) - stacked :] for i, x in enumerate(leaves)]
        return (place, id(request.net), id(request.examples), id(request.public), str(spec), str(shapes))

    def _joined(self, turn: OneTurn, requests: Mapping[int, Request]) -> dict[int, Answer]:
        runs, asked = list(requests), list(requests.values())
        if len(runs) == 1:
            return {runs[0]: self._execute(*asked[0])}
        sizes = [len(r.turn.size) for r in asked]
        like = asked[0].turn.size
        of = torch.arange(len(runs), device=like.device).repeat_interleave(torch.tensor(sizes, device=like.device))
        table = torch.tensor([[n.values[run] for n in turn.numbers] for run in runs], dtype=like.dtype)
        mine: Mine = tree_map(lambda *x: torch.cat(x), *[r.mine for r in asked])
        mine = mine._replace(method=Member(of, table.to(like.device)[of], mine.method))
        gather = torch.cat if turn.method.private_send else torch.stack
        down = tree_map(lambda *x: gather(x), *[r.down for r in asked])
        turns = _side_by_side([r.turn for r in asked])
        reply = self._execute(turn.method, asked[0].net, down, mine, asked[0].examples, turns, asked[0].public)
        leaves, spec = tree_flatten(reply)
        parts = zip(*(torch.split(x, sizes) for x in leaves), strict=True)
        return {run: tree_unflatten(part, spec) for run, part in zip(runs, parts, strict=True)}


def or_alone(
    together: Callable[[Mapping[int, Request]], dict[int, Answer]], execute: Execute
) -> Callable[[Mapping[int, Request]], dict[int, Answer]]:
    """The same; but after an error each run goes on with `execute` for good, so that it meets its own errors only."""
    apart = False

    def answer(request: Request) -> Answer:
        try:
            return execute(*request)
        except Exception as error:
            return error

    def answers(requests: Mapping[int, Request]) -> dict[int, Answer]:
        nonlocal apart
        if not apart:
            try:
                return together(requests)
            except Exception as error:
                apart = True
                warnings.warn(f"runs go on one after the other, since together: {error}", stacklevel=2)
        return {run: answer(request) for run, request in requests.items()}

    return answers


def _side_by_side(turns: Sequence[Turn]) -> Turn:
    """The turns of several cohorts as those of one, padded to the widest."""

    def padded(parts: Sequence[Tensor]) -> Tensor:
        shape = [max(sizes) for sizes in zip(*(p.shape[1:] for p in parts), strict=True)]
        out = parts[0].new_full((sum(map(len, parts)), *shape), -1)
        for part, place in zip(parts, torch.split(out, [len(p) for p in parts]), strict=True):
            place[(slice(None), *map(slice, part.shape[1:]))] = part
        return out

    size, key, rate, past = (torch.cat([getattr(t, f) for t in turns]) for f in ("size", "key", "rate", "past"))
    steps = {name: padded([t.steps[name] for t in turns]) for name in turns[0].steps}
    return Turn(padded([t.rows for t in turns]), size, steps, key, rate, past)
