"""Clients in a Ray cluster: every actor holds a share of them, and runs it as one process would.

What clients keep stays with their actor. A copy of it comes here at the end of each round: it is what checkpoints are
written from, and what a new actor starts from when one is lost.
"""

from __future__ import annotations

import itertools
import uuid
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import ray
import torch
from ray import exceptions
from torch import Tensor
from torch.utils._pytree import tree_map

from weft.core.clients import Exam, Group, Marks, Message, Part, TellNode, Timed, joined, untimed, unwatched
from weft.core.here import Here, turn_of
from weft.executors.place import Build, opened, packed
from weft.executors.pool import Pool

LOST = (
    exceptions.RayActorError,
    exceptions.WorkerCrashedError,
    exceptions.NodeDiedError,
    exceptions.ObjectLostError,
    exceptions.OutOfMemoryError,
)
"""An actor, or what it has answered, is gone."""

ATTEMPTS = 4
"""How often a place is asked the same before the run gives up."""

DOING = {"hear": "training", "judge": "evaluating"}
"""What an actor does when it is asked so."""

TOGETHER = 256
"""Clients of a place whose own downloads travel at once when views are judged."""


class Cluster:
    """Clients sharded over the actors of a pool."""

    def __init__(
        self, here: Here, pool: Pool, build: Build, *what: Any, shares: Sequence[Tensor] | None = None
    ) -> None:
        """Have the clients of `here` at the actors.

        Args:
            here: all of them, as they are now; what they keep is copied to it at the end of each round.
            pool: the actors.
            build: builds a share of the clients there, from its ids, the device, and `what`.
            what: sent to each machine once.
            shares: client ids of each actor, int64, ascending; by default every so-many-th client.
        """
        self._here, self._pool, self._build = here, pool, build
        self._run, self._tell = uuid.uuid4().hex, unwatched
        self._what = [ray.put(thing) for thing in what]
        everybody = torch.cat([group.ids for group in here.groups]).sort().values
        split = shares or [everybody[i :: len(pool.actors)] for i in range(len(pool.actors))]
        self._shares = [ids for ids in split if len(ids)]
        self._held = list(pool.actors[: len(self._shares)])
        self._heard: list[Mapping[int, Any]] = []  # what was asked in the round so far, in case it has to be again
        self._all("hold", {place: self._share(place) for place in range(len(self._shares))})

    @property
    def groups(self) -> tuple[Group, ...]:
        """Who has which architecture."""
        return self._here.groups

    def watched(self, tell: TellNode) -> None:
        """Say what becomes of the actors."""
        self._tell = tell
        for place in range(len(self._shares)):
            tell(f"actor {place}", "ready")

    def there(self, able: Tensor) -> Tensor:
        """All of them."""
        return able

    def hear(self, message: Message, timed: Timed = untimed) -> Iterator[Part]:
        """Let clients take their turns, all actors at once; see `Clients`."""
        if message.exchange == 0:
            self._heard = []
        private = turn_of(self._here.method, message).private_send
        down = None if private else ray.put(packed(message.down))
        asks = {}
        for place, at in self._places(message.ids):
            own = packed(tree_map(lambda x, at=at: x[at.to(x.device)], message.down)) if private else down
            which = (message.number, message.exchange, packed(message.ids[at]), packed(message.past[at]))
            asks[place] = (*which, own)
        with timed("local"):
            parts = self._all("hear", asks)
        self._heard.append(asks)
        yield from (opened(part, self._here.examples.y.device, own=True) for part in parts)

    def keep(self, ids: Tensor) -> None:
        """End the round at the actors, and have the copy of what is kept follow."""
        places = {place for asks in self._heard for place in asks}
        for kept in self._all("keep", {place: (packed(ids),) for place in sorted(places)}):
            for some, states in kept:
                self._here.put(opened(some), opened(states))
        self._heard = []

    def judge(self, exam: Exam) -> Mapping[str, Marks]:
        """Judge a view at the actors."""
        judged = torch.cat(self._shares).sort().values if exam.ids is None else exam.ids
        own = {place: judged[at] for place, at in self._places(judged)}
        what = (exam.number, exam.split, exam.view, exam.full, ray.put(packed(exam.past)))
        if self._here.method.views[exam.view].shared or not exam.look(judged[:1])[1]:
            down = ray.put(packed(exam.look(judged)[0]))
            return _merged(self._all("judge", {p: (*what, packed(ids), down, False) for p, ids in own.items()}))
        marks: list[Mapping[str, Marks]] = []
        for start in range(0, max(map(len, own.values())), TOGETHER):
            some = {place: ids[start : start + TOGETHER] for place, ids in own.items() if len(ids) > start}
            asks = {p: (*what, packed(ids), packed(exam.look(ids)[0]), True) for p, ids in some.items()}
            marks += self._all("judge", asks)
        return _merged(marks)

    def state(self, client: int) -> Any:
        """What the method keeps at this client, from the copy."""
        return self._here.state(client)

    def saved(self) -> Any:
        """The copy."""
        return self._here.saved()

    def restore(self, saved: Any) -> None:
        """Put back what was saved, here and at the actors."""
        self._here.restore(saved)
        self._all("hold", {place: self._share(place) for place in range(len(self._shares))})

    def close(self) -> None:
        """Let the actors forget this run."""
        for actor in self._held:
            actor.drop.remote(self._run)

    def _places(self, ids: Tensor) -> Iterator[tuple[int, Tensor]]:
        """(place, which of these clients are there), of those that have some."""
        for place, share in enumerate(self._shares):
            at = torch.isin(ids, share).nonzero()[:, 0]
            if len(at):
                yield place, at

    def _share(self, place: int) -> tuple[Any, ...]:
        """What a place is to hold."""
        share, saved = self._shares[place], list[Any]()
        for group, store in zip(self.groups, self._here.kept, strict=True):
            own, seen = group.ids[torch.isin(group.ids, share)], store.seen()
            there = seen[torch.isin(group.ids[seen], own)]
            members = torch.searchsorted(own, group.ids[there])
            saved.append({"members": members, "states": store.gather(there)} if len(there) else None)
        return (self._build, packed(share), packed(saved), *self._what)

    def _all(self, method: str, asks: Mapping[int, tuple[Any, ...]]) -> list[Any]:
        """The answers of places to calls that are made at once, in the order of places; lost actors are replaced.

        Raises:
            ConnectionError: a place is lost again and again.
        """
        calls = {place: self._call(place, method, ask) for place, ask in asks.items()}
        answers = []
        for place in asks:
            self._tell(f"actor {place}", DOING.get(method, "ready"))
        for place, ask in asks.items():
            for attempt in itertools.count(1):
                try:
                    answers.append(ray.get(calls[place]))
                    self._tell(f"actor {place}", "ready")
                    break
                except LOST as error:
                    self._tell(f"actor {place}", "lost", f"{_line(error)}; another takes its share")
                    if attempt == ATTEMPTS:
                        raise ConnectionError(
                            f"actor {place} of {len(self._held)} was lost {ATTEMPTS} times ({_line(error)})"
                        ) from error
                    calls[place] = self._again(place, method, ask)
                except exceptions.RayTaskError as error:
                    raise error.cause from error
        return answers

    def _again(self, place: int, method: str, ask: tuple[Any, ...]) -> Any:
        """The call once more, to a new actor that is brought to where the lost one was.

        Everything a client does follows from what it has kept, so what was put by in the round comes out the same.
        """
        self._held[place] = self._pool.replaced(place, self._held[place])
        if method != "hold":
            self._call(place, "hold", self._share(place))
        for asks in self._heard:
            if place in asks:
                self._call(place, "hear", asks[place])
        return self._call(place, method, ask)

    def _call(self, place: int, method: str, ask: tuple[Any, ...]) -> Any:
        return getattr(self._held[place], method).remote(self._run, *ask)


def _merged(found: Sequence[Mapping[str, Marks]]) -> dict[str, Marks]:
    """The marks that places have given, by the name of what was asked."""
    return {name: joined([marks[name] for marks in found]) for name in found[0]}


def _line(error: BaseException) -> str:
    """The first line of an error."""
    return next(iter(str(error).splitlines()), type(error).__name__).strip()
