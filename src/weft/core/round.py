"""The round: the server's half, the same for every method and wherever the clients are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from weft.core.clients import Clients, Group, Message, Part, Timed, Traffic, untimed
from weft.core.method import Method, Round
from weft.core.net import Net
from weft.core.reduction import gathered
from weft.core.tree import Tree
from weft.core.turn import encoded


class NotFinite(ArithmeticError):
    """A client's upload holds a NaN or an infinity."""

    def __init__(self, number: int, clients: Sequence[int], channel: str) -> None:
        super().__init__(
            f"round {number}: what client {', '.join(map(str, clients))} sent on channel {channel!r} is not finite: "
            "lower the learning rate, clip gradients (--clip 10), or leave such clients out with --on-nan skip"
        )


@dataclass(frozen=True)
class Federation:
    """The server's state between two rounds, and its clients."""

    method: Method
    clients: Clients
    server: Any
    then: Mapping[str, Any]  # channel -> state of its server-side transform
    turns: Tensor  # int64 [population]: how many turns each client has had

    @property
    def groups(self) -> tuple[Group, ...]:
        """Who has which architecture."""
        return self.clients.groups

    @property
    def net(self) -> Net:
        """The network of the first group, which is the server's."""
        return self.groups[0].net


class Played(NamedTuple):
    """The outcome of a round."""

    federation: Federation
    ids: Tensor  # the clients whose answers counted
    skipped: Tensor  # those left out because their upload was not finite
    traffic: Traffic
    steps: int  # local steps of all clients


def begin(method: Method, clients: Clients, population: int, seed: int = 0, first: Tree | None = None) -> Federation:
    """The federation before its first round; `seed` draws the initial weights, `first` replaces them.

    The clients must have begun with the same seed and the same `first`.
    """
    net = clients.groups[0].net
    server = method.server(net, first or net.init(seed))
    return Federation(method, clients, server, {}, torch.zeros(population, dtype=torch.int64))


def play(
    federation: Federation,
    number: int,
    ids: Tensor,
    *,
    root: Any = None,
    public: Any = None,
    skip_not_finite: bool = False,
    seed: int = 0,
    everybody: Tensor | None = None,
    timed: Timed = untimed,
) -> Played:
    """Play one round with the clients `ids` (int64, ascending).

    Clients keep anything at the very end only, so a round that fails leaves the federation as it was. A method's
    opening is round 0, with the clients `everybody`, by default all; it counts as no turn, and clients keep nothing
    of it.

    Raises:
        NotFinite: an upload is not finite and `skip_not_finite` is off.
    """
    method, clients = federation.method, federation.clients
    up, down, steps = 0, 0, 0
    if number == 1 and method.opening is not None:
        first = play(
            replace(federation, method=method.opening),
            0,
            torch.arange(len(federation.turns)) if everybody is None else everybody,
            root=root,
            public=public,
            skip_not_finite=skip_not_finite,
            seed=seed,
            timed=timed,
        )
        federation = replace(federation, server=first.federation.server)
        (up, down), steps = first.traffic, first.steps
    rnd = Round(number, ids, len(federation.turns), federation.net, None, root, public, seed)
    past, state, then = federation.turns[ids], federation.server, dict(federation.then)
    good, skipped = torch.ones(len(ids), dtype=torch.bool), ids[:0]
    turn: Method | None = method
    exchange = 0
    while turn is not None:
        parts: list[Part] = []
        for part in clients.hear(Message(number, exchange, ids, past, turn.send(state, rnd)), timed):
            if len(part.skipped) and not skip_not_finite:
                raise NotFinite(number, part.skipped.tolist(), part.culprit)
            skipped = torch.cat([skipped, part.skipped])
            up, down, steps = up + part.traffic.up, down + part.traffic.down, steps + part.steps
            rnd = rnd._replace(rate=part.rate)
            parts += [part] if len(part.ids) else []
        good &= torch.isin(ids, torch.cat([ids[:0], *(part.ids for part in parts)]))
        if parts:
            reduced, there, weights = gathered(turn, federation.net, parts)
            state, then = advanced(turn, state, then, reduced, rnd._replace(ids=there, weights=weights))
        turn, exchange = turn.next, exchange + 1
    turns = federation.turns.clone()
    if number:
        clients.keep(ids[good])
    turns[ids[good]] += 1
    end = replace(federation, server=state, then=then, turns=turns)
    return Played(end, ids[good], skipped, Traffic(up, down), steps)


def advanced(
    method: Method, state: Any, then: Mapping[str, Any], reduced: Any, rnd: Round
) -> tuple[Any, dict[str, Any]]:
    """Apply the server-side transform of each channel, and let the method advance."""
    stepped, after = {}, dict(then)
    for name, tree in reduced._asdict().items():
        transform = method.up[name].then
        got, carried = encoded(rnd.net, tree)
        if transform is not None:
            memory = after[name] if name in after else transform.init(got)
            got, after[name] = transform.update(got, memory, got)
        stepped[name] = {**got, **carried}
    return method.advance(state, type(reduced)(**stepped), rnd), after
