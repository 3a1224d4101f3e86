"""Clients: what the server knows of them, whatever the place where they live.

The round (`weft.core.round`) is the server's half. The clients' half is behind `Clients`: what they keep, their
examples, the drawing of their batches and the running of their turns. `weft.core.here` has them in this process.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, NamedTuple, Protocol

import numpy as np
from torch import Tensor

from weft.core.net import Net

Array = np.ndarray[Any, np.dtype[Any]]


class Group(NamedTuple):
    """Clients that share an architecture."""

    net: Net
    ids: Tensor  # int64, ascending


class Message(NamedTuple):
    """What the server sends in one exchange of a round. All exchanges of a round go to the same clients."""

    number: int  # the round; 0: the method's opening
    exchange: int  # 0: the first turn of the round, 1: its `next`, ...
    ids: Tensor  # int64, ascending
    past: Tensor  # int64: how many turns each of them has had
    down: Any  # one for all; stacked over `ids` if the turn's `private_send` says so


class Traffic(NamedTuple):
    """Bytes, over all clients."""

    up: int
    down: int


class Part(NamedTuple):
    """What some of the clients have answered in an exchange. A client that is in no part was not there."""

    ids: Tensor  # int64, ascending: whose answers count
    weights: Tensor  # their weights
    up: Any  # their uploads: reduced if every channel's reduction is a sum, else stacked in the order of `ids`
    skipped: Tensor  # int64: whose uploads were not finite; they are left out
    culprit: str  # the channel on which the first such thing was, "" if there was none
    traffic: Traffic
    steps: int  # local steps that were made
    rate: Tensor  # scalar: the schedule's factor on the local learning rate


Look = Callable[[Tensor], tuple[Any, bool]]
"""Client ids, in any order -> (what views get as the download, whether it is stacked over these clients)."""


class Exam(NamedTuple):
    """A view that is to be judged on the clients' own examples."""

    number: int  # after this round
    split: str  # validation, test, or the name of a test stream
    view: str
    full: bool  # all metrics, not only accuracy and loss
    past: Tensor  # int64 [population]: how many turns each client has had
    look: Look
    ids: Tensor | None = None  # int64, ascending: whose; None: everybody's


class Marks(NamedTuple):
    """How clients did in an exam: of those that have examples, in the order of their ids."""

    ids: Array  # int64 [k]
    counts: Array  # int64 [k]: their examples
    metrics: Mapping[str, Array]  # name -> [k]


def joined(each: Sequence[Marks]) -> Marks:
    """Marks that were given apart, of different clients, in the order of ids."""
    full = [marks for marks in each if len(marks.ids)] or each[:1]
    order = np.argsort(np.concatenate([marks.ids for marks in full]))

    def whole(arrays: Iterable[Array]) -> Array:
        return np.concatenate(list(arrays))[order]

    metrics = {name: whole(marks.metrics[name] for marks in full) for name in full[0].metrics}
    return Marks(whole(marks.ids for marks in full), whole(marks.counts for marks in full), metrics)


Timed = Callable[[str], AbstractContextManager[None]]
"""Is told what time is spent on: "data" is drawing batches, "local" is running turns."""


@contextmanager
def untimed(part: str) -> Iterator[None]:
    """Nobody asks."""
    yield


class TellNode(Protocol):
    """Is told what becomes of the places where clients live; safe from any thread."""

    def __call__(self, name: str, state: str, cause: str = "") -> None:
        """Say that a place is "ready", "training", "evaluating", "late", "lost", "refused" or "failed".

        `cause` is a sentence for people, given if something is wrong; it is also listed among the run's failures.
        """


def unwatched(name: str, state: str, cause: str = "") -> None:
    """Nobody asks."""


class Clients(Protocol):
    """The clients of a run. What they keep and their examples stay with them."""

    @property
    def groups(self) -> tuple[Group, ...]:
        """Who has which architecture; the first one's is also the server's."""

    def watched(self, tell: TellNode) -> None:
        """From now on say what becomes of the places where they live; those in this process have nothing to say."""

    def there(self, able: Tensor) -> Tensor:
        """Those of these clients (int64, ascending) that could be in a round now."""

    def hear(self, message: Message, timed: Timed = untimed) -> Iterable[Part]:
        """Let clients take their turns. What they will keep is only put by, so that a round may fail or be repeated."""

    def keep(self, ids: Tensor) -> None:
        """End the round: these clients keep what they have put by in it, the others what they had before."""

    def judge(self, exam: Exam) -> Mapping[str, Marks]:
        """Judge a view on everybody's examples, where these are; only figures come back, by the name of what was asked.

        The first name is the split's; a split may have parts, which have names of their own.
        """

    def state(self, client: int) -> Any:
        """What the method keeps at this client."""

    def saved(self) -> Any:
        """What a checkpoint must hold of the clients: a structure of tensors, some of which may come in `blocks()`."""

    def restore(self, saved: Any) -> None:
        """Put back what `saved` gave, as tensors; for clients that have had no turn yet."""

    def close(self) -> None:
        """Let go of whatever the clients live in."""
