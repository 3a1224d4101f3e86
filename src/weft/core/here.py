"""Clients in this process."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from weft.core.channel import Codec
from weft.core.clients import Exam, Group, Marks, Message, Part, TellNode, Timed, Traffic, untimed
from weft.core.kept import Kept
from weft.core.method import Method
from weft.core.net import Net
from weft.core.reduction import reduced, sums
from weft.core.task import Examples, Reply, Turn
from weft.core.tree import Tree, taken
from weft.core.turn import Draw, Execute, Mine, encoded

Weigh = Callable[[Tree, Codec | None], int]
"""(what one client sends or receives on one channel, its codec) -> bytes."""

Examine = Callable[["Here", Exam], Mapping[str, Marks]]
"""Judges clients that are here."""

STACK = 2**28
"""Bytes of uploads that are held at once, if every reduction is a sum, so that parts of a cohort are reduced apart."""


def nbytes(tree: Tree, codec: Codec | None = None) -> int:
    """Bytes of a tree's entries, without any framing; `weft.wire` counts what is really packed."""
    return sum(x.numel() * x.element_size() for x in tree.values())


@dataclass
class Here:
    """Clients whose states and examples this process holds; some of a run's clients, or all."""

    method: Method
    groups: tuple[Group, ...]
    kept: tuple[Kept, ...]  # per group
    examples: Examples
    draw: Draw
    execute: Execute
    examine: Examine | None = None
    weigh: Weigh = nbytes
    public: Any = None  # data that every client holds, if the method declared that it needs some
    _blocks: list[list[Seat]] = field(default_factory=list, init=False)
    _minds: dict[Seat, Any] = field(default_factory=dict, init=False)  # what clients will keep

    @staticmethod
    def begin(
        method: Method,
        groups: Sequence[Group],
        examples: Examples,
        draw: Draw,
        execute: Execute,
        *,
        seed: int = 0,
        first: Tree | None = None,
        folder: Path | None = None,
        **parts: Any,
    ) -> Here:
        """The clients before their first turn.

        Args:
            method: the run's method.
            groups: the clients that are here, by architecture; the server's comes first, even if no client here has it.
            examples: everybody's examples.
            draw: draws turns.
            execute: runs them.
            seed: draws the initial weights.
            first: initial weights of the first group in place of those.
            folder: where files of what clients keep go, by default the system's temporary folder.
            **parts: `examine`, `weigh` and `public`.
        """
        alike = (groups[0], *(g._replace(net=replace(g.net, common=groups[0].net)) for g in groups[1:]))
        firsts = [g.net.init(seed) for g in alike]
        firsts[0] = first or firsts[0]
        kept = tuple(
            Kept(Mine(method.client(g.net, start), {}), len(g.ids), folder)
            for g, start in zip(alike, firsts, strict=True)
        )
        return Here(method, alike, kept, examples, draw, execute, **parts)

    def there(self, able: Tensor) -> Tensor:
        """All of them."""
        return able

    def hear(self, message: Message, timed: Timed = untimed) -> Iterator[Part]:
        """Let clients take their turns, block by block; see `Clients`."""
        turn, ids, down = turn_of(self.method, message), message.ids, message.down
        if message.exchange == 0:
            self._blocks, self._minds = _blocks(self.groups, turn, ids, _size(turn, down, nbytes)), {}
        received = _size(turn, down, self.weigh)
        for seats in self._blocks:
            replies, steps = [], 0
            for seat in seats:
                mine = self._minds[seat] if seat in self._minds else self.kept[seat.group].gather(seat.members)
                given = taken(down, seat.here) if turn.private_send else down
                with timed("data"):
                    drawn, count = self.drawn(turn, message, seat.here)
                    steps += count
                with timed("local"):
                    net = self.groups[seat.group].net
                    replies.append(self.execute(turn, net, given, mine, self.examples, drawn, self.public))
                self._minds[seat] = replies[-1].mine
            up, weights, members = _in_order(replies, [ids[seat.here] for seat in seats])
            total = reduced(turn, self.groups[0].net, up, weights) if sums(turn) else None
            ok, culprit = finite(up, weights, total), ""
            traffic = Traffic(
                _bytes_up(turn, self.groups[0].net, up, len(members), self.weigh), received * len(members)
            )
            if not ok.all():
                culprit = culprit_of(up)
                up, weights = tree_map(lambda x, f=ok: x[f.to(x.device)], (up, weights))
                total = reduced(turn, self.groups[0].net, up, weights) if ok.any() and sums(turn) else None
            whole = up if total is None else total
            yield Part(members[ok], weights, whole, members[~ok], culprit, traffic, steps, drawn.rate[0])

    def drawn(self, turn: Method, message: Message, at: Tensor) -> tuple[Turn, int]:
        """(the batches of those clients of a message that are `at` these places, their steps in all)."""
        number = message.number or 1  # batches of the opening are drawn as those of the first round
        found = self.draw(number, message.ids[at], turn.phases, message.past[at])
        return found, sum(int((s >= 0).any(2).sum()) for s in found.steps.values())

    def keep(self, ids: Tensor) -> None:
        """Write what these clients have put by."""
        for seat, mind in self._minds.items():
            group = self.groups[seat.group]
            ok = torch.isin(group.ids[seat.members], ids).nonzero()[:, 0]
            self.kept[seat.group].scatter(seat.members[ok], taken(mind, ok))
        self._blocks, self._minds = [], {}

    def judge(self, exam: Exam) -> Mapping[str, Marks]:
        """Judge a view on the examples that are here; see `Clients`."""
        assert self.examine, "these clients were begun without `examine`"
        return self.examine(self, exam)

    def state(self, client: int) -> Any:
        """What the method keeps at this client."""
        return tree_map(lambda x: x[0], self.states(torch.tensor([client])).method)

    def states(self, ids: Tensor) -> Mine:
        """All that clients of one architecture keep, stacked."""
        store, members = self._rows(ids)
        mine: Mine = store.gather(members)
        return mine

    def put(self, ids: Tensor, states: Mine) -> None:
        """Let clients of one architecture keep this."""
        store, members = self._rows(ids)
        store.scatter(members, states)

    def _rows(self, ids: Tensor) -> tuple[Kept, Tensor]:
        k = next(k for k, group in enumerate(self.groups) if bool(torch.isin(ids, group.ids).all()))
        return self.kept[k], torch.searchsorted(self.groups[k].ids, ids)

    def saved(self) -> list[dict[str, Any] | None]:
        """For each group what its clients keep that ever had a turn; tensors of it may come in parts."""
        return [store.saved() if len(store.seen()) else None for store in self.kept]

    def restore(self, saved: Sequence[dict[str, Any] | None]) -> None:
        """Put that back."""
        for store, found in zip(self.kept, saved, strict=True):
            if found is not None:
                for some in torch.split(torch.arange(len(found["members"])), store.block):
                    store.scatter(found["members"][some], tree_map(lambda x, s=some: x[s], found["states"]))

    def watched(self, tell: TellNode) -> None:
        """Nothing to say that the run does not know."""

    def close(self) -> None:
        """Nothing to let go of."""


@dataclass(frozen=True, eq=False)
class Seat:
    """Clients of a round that share an architecture and are run together."""

    group: int
    here: Tensor  # int64: their places among the round's clients
    members: Tensor  # int64: their places in their group


def turn_of(method: Method, message: Message) -> Method:
    """The turn that a message is for."""
    turn = method if message.number else method.opening
    for _ in range(message.exchange):
        turn = turn and turn.next
    assert turn, f"{method.name} has no exchange {message.exchange} in round {message.number}"
    return turn


def _blocks(groups: Sequence[Group], first: Method, ids: Tensor, upload: int) -> list[list[Seat]]:
    """The round's clients in blocks whose uploads, of about so many bytes each, fit; within them by architecture."""
    turns = [first]
    while turns[-1].next is not None:
        turns.append(turns[-1].next)
    size = len(ids)
    if all(map(sums, turns)):
        size = max(1, STACK // max(1, upload))
    blocks = []
    for places in torch.split(torch.arange(len(ids)), size):
        seats = []
        for k, group in enumerate(groups):
            here = places[torch.isin(ids[places], group.ids)]
            if len(here):
                seats.append(Seat(k, here, torch.searchsorted(group.ids, ids[here])))
        blocks.append(seats)
    return blocks


def _in_order(replies: Sequence[Reply[Any, Any]], clients: Sequence[Tensor]) -> tuple[Any, Tensor, Tensor]:
    """(uploads, weights, client ids) of all groups, stacked in the order of ids."""
    if len(replies) == 1:
        return replies[0].up, replies[0].weight, clients[0]
    ids, order = torch.cat(list(clients)).sort()
    up, weights = tree_map(lambda *x: torch.cat(x)[order.to(x[0].device)], *[(r.up, r.weight) for r in replies])
    return up, weights, ids


def finite(up: Any, weights: Tensor, total: Any = None) -> Tensor:
    """Bool [clients], on the host: every number that a client sent is finite.

    `total`: a sum of the uploads, if there is one. It lets nothing that is not finite hide, and is quicker to look at.
    """
    one = [weights, *(x for x in tree_leaves(up if total is None else total) if x.is_floating_point())]
    if bool(torch.stack([x.sum().double() for x in one]).isfinite().all()):  # one pass; nor does this sum
        return torch.ones(len(weights), dtype=torch.bool)
    floats = [weights, *(x for x in tree_leaves(up) if x.is_floating_point())]
    ok = torch.stack([x.flatten(1).isfinite().all(1) if x.ndim > 1 else x.isfinite() for x in floats])
    return ok.all(0).cpu()


def culprit_of(up: Any) -> str:
    """The first channel on which something is not finite."""
    return next((n for n, t in up._asdict().items() if not all(v.isfinite().all() for v in tree_leaves(t))), "weight")


def _size(turn: Method, down: Any, weigh: Weigh) -> int:
    """Bytes that one client receives."""
    trees = down._asdict().values()
    if turn.private_send:
        trees = [{k: v[0] for k, v in t.items()} for t in trees]
    return sum(weigh(t, None) for t in trees)


def _bytes_up(turn: Method, net: Net, up: Any, clients: int, weigh: Weigh) -> int:
    total = 0
    for name, stack in up._asdict().items():
        codec = turn.up[name].encode
        if codec is None:
            total += clients * weigh({k: v[0] for k, v in stack.items()}, None)
            continue
        coded, carried = encoded(net, stack)
        total += sum(weigh({k: v[i] for k, v in coded.items()}, codec) for i in range(clients))
        total += clients * weigh({k: v[0] for k, v in carried.items()}, None) if carried else 0
    return total
