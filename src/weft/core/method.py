"""Method: a federated method as a value made of pure functions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from torch import Tensor

from weft.core.channel import Channel, keep_all
from weft.core.errors import SettingError
from weft.core.net import Net
from weft.core.task import Reply, Task
from weft.core.tree import Tree


@dataclass(frozen=True)
class Phase:
    """How the batches of one part of a client's turn are drawn.

    Each epoch is a fresh shuffle of the drawn examples cut into batches; the short last batch is kept.
    """

    epochs: int | None = None  # None: the run's ``epochs``
    steps: int | None = None  # so many batches, however many epochs that takes; instead of epochs
    part: tuple[float, float] = (0.0, 1.0)  # draw from this stretch of the examples, in an order that never changes
    share: float = 1.0  # draw this share of those afresh in every turn
    reshuffle: bool = True  # False: all epochs use the order of the first
    first: int = 0  # only in turns with at least so many earlier ones ...
    last: int | None = None  # ... and at most so many

    def __post_init__(self) -> None:
        for name, value in (("epochs", self.epochs), ("steps", self.steps)):
            if value is not None and value < 0:
                raise SettingError(f"{name} = {value} of a phase is no number of passes: use 0 or more")
        if not 0 < self.share <= 1:
            raise SettingError(f"share = {self.share} of a phase is no share of the examples: use above 0 and up to 1")
        if not 0 <= self.part[0] < self.part[1] <= 1:
            raise SettingError(f"part = {self.part} of a phase is no stretch of the examples: use such as (0.2, 1)")


class Round(NamedTuple):
    """What the server knows about a round."""

    number: int  # 1, 2, ...
    ids: Tensor  # int64 [cohort], ascending
    population: int
    net: Net
    weights: Tensor | None = None  # [cohort], as the clients reported them; None before they have
    root: Any = None  # data that the server owns, if the method declared that it needs some
    public: Any = None
    seed: int = 0  # for what the server draws
    rate: Tensor | float = 1.0  # the schedule's factor on the local learning rate, once turns have been drawn


Predict = Callable[[Tensor], Tensor]
"""x [batch, ...] -> logits (or any scores whose largest is the answer) [batch, classes]."""


class View(NamedTuple):
    """A way to answer that is to be judged. It only looks: it changes nothing of what it is given in place."""

    predict: Callable[[Net, Task[Any, Any]], Predict]
    shared: bool = False  # True: depends on what everybody received only, so one pass judges all clients
    newcomer: Callable[[Net, Task[Any, Any]], Predict] | None = None  # for clients that had no turn; None: as others
    data: bool = True  # False: does not ask for `task.data`, which is then None, so that nothing is drawn

    def of(self, past: int) -> Callable[[Net, Task[Any, Any]], Predict]:
        """How a client that has had so many turns answers."""
        return self.newcomer if self.newcomer is not None and not past else self.predict


@dataclass(frozen=True, eq=False)
class Method:
    """A federated method. Everything that runs at a client is `work` and the codecs; the rest runs at the server."""

    name: str
    server: Callable[[Net, Tree], Any]  # first state of the server
    client: Callable[[Net, Tree], Any]  # first state of a client
    send: Callable[[Any, Round], Any]  # server state -> what clients receive
    work: Callable[[Net, Task[Any, Any]], Reply[Any, Any]]
    advance: Callable[[Any, Any, Round], Any]  # (state, reduced upload, round) -> state
    views: Mapping[str, View]
    up: Mapping[str, Channel]
    private_send: bool = False  # True: `send` returns one download per client of the round, stacked
    show: Callable[[Any, Round], Any] | None = None  # server state -> what views get as the download; None: as `send`.
    # A `Stacked` holds one for each client of the round, as where `private_send` is true
    next: Method | None = None  # a second turn in the same round, with the same states
    opening: Method | None = None  # an exchange with everybody before the first round, of which the server alone keeps
    needs: frozenset[str] = frozenset()  # "root data", "public data"
    phases: Mapping[str, Phase] = field(default_factory=lambda: {"local": Phase()})
    args: Mapping[str, Any] = field(default_factory=dict)  # what it was made with


class Stacked(NamedTuple):
    """What `show` returns where views of different clients get different downloads."""

    down: Any  # stacked over the clients of the round


def tune(method: Method, channel: str, **parts: Any) -> Method:
    """The same method with another codec, reduction or server optimiser on one channel.

    Raises:
        SettingError: the method has no such channel.
    """
    if channel not in method.up:
        raise SettingError(f"{method.name} has no channel {channel!r}: it sends {', '.join(method.up) or 'nothing'}")
    if method.up[channel].reduce is keep_all and parts.get("reduce", keep_all) is not keep_all:
        raise SettingError(f"{method.name} needs what each client sends on {channel!r}: leave its reduction as it is")
    return replace(method, up={**method.up, channel: replace(method.up[channel], **parts)})


def shown(method: Method, state: Any, r: Round) -> tuple[Any, bool]:
    """(what views get as the download, whether it is stacked over the clients of `r`)."""
    if method.show is not None:
        found = method.show(state, r)
        return (found.down, True) if isinstance(found, Stacked) else (found, False)
    return method.send(state, r), method.private_send


class Model(NamedTuple):
    """The commonest state and message: a model, or a change of one."""

    model: Tree


class Nothing(NamedTuple):
    """The message of a method that sends nothing."""
