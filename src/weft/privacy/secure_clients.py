"""Secure aggregation for the clients of a run: of every exchange the server gets sums, and no single upload.

Here the clients are simulated, so one process holds both sides; the messages between them are those of a network. A
server and clients in processes of their own (`weft.deploy.secure`) use `flattened`, `SumOf` and the two sides of the
protocol in the same way.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from weft.core.channel import Sum, keep_all
from weft.core.clients import Clients, Exam, Group, Marks, Message, Part, TellNode, Timed, Traffic, untimed
from weft.core.errors import SettingError
from weft.core.here import turn_of
from weft.core.method import Method
from weft.core.net import Net
from weft.core.reduction import sums
from weft.core.tree import Tree
from weft.core.turn import encoded
from weft.privacy.fixed_point import FixedPoint, Floats, Layout, OutOfRange
from weft.privacy.secure_round import enough, secure_sum

WEIGHT = ":weight"  # beside the channels, whose names are Python's


def summands(turn: Method, net: Net, up: Any, weight: Tensor, most: float) -> dict[str, Tree]:
    """What one client puts into the sum: x, or weight * x and the weight, as a share of the largest weight `most`.

    Raises:
        OutOfRange: the weight is larger than that.
    """
    if not 0 <= float(weight) <= most:
        raise OutOfRange(f"a weight of {float(weight):g} is beyond secure_weight = {most:g}: use a larger one")
    share = (weight / most).double()
    found = {WEIGHT: {"weight": share}}
    for name, tree in up._asdict().items():
        reduce = turn.up[name].reduce
        assert isinstance(reduce, Sum)
        coded, carried = encoded(net, tree)
        if reduce.weighted:
            coded, carried = {}, tree
        found[name] = {**coded, **{k: share * v.double() for k, v in carried.items()}}
    return found


def flattened(
    turn: Method, net: Net, up: Any, weight: Tensor, bound: float, most: float, number: int, client: int
) -> Floats:
    """What a client puts into the sum of round `number`, as one vector.

    Raises:
        OutOfRange: a number of it is beyond `bound`, or the weight beyond `most`; the message names the client.
    """
    named = summands(turn, net, up, weight, most)
    for channel, tree in named.items():
        largest = max((float(x.abs().max()) for x in tree.values() if x.numel()), default=0.0)
        if largest > bound:
            raise OutOfRange(
                f"round {number}: client {client} sends {largest:g} on channel {channel!r}, beyond secure_range = "
                f"{bound:g}: use a larger range"
            )
    return Layout.of(named).flat(named)


@dataclass(frozen=True, eq=False)
class SumOf:
    """How to read a sum: the layout of its vector, and how each channel is reduced."""

    turn: Method
    net: Net
    like: Any  # an upload
    most: float  # the largest weight

    @property
    def layout(self) -> Layout:
        """Where what `summands` gives lies in a vector."""
        return Layout.of({WEIGHT: {"weight": torch.zeros(())}, **self.like._asdict()})

    def reduced(self, vector: Floats, clients: int) -> tuple[Any, float]:
        """(what the server gets of so many clients, the sum of their weights)."""
        found = self.layout.trees(vector)
        share = float(found.pop(WEIGHT)["weight"])
        up = {}
        for name, tree in self.like._asdict().items():
            reduce = self.turn.up[name].reduce
            assert isinstance(reduce, Sum)
            _, carried = encoded(self.net, tree)
            entries = {}
            for k, like in tree.items():
                if k in carried or (reduce.weighted and reduce.divided):
                    value = found[name][k] / share
                elif reduce.weighted:
                    value = found[name][k] * self.most
                else:
                    value = found[name][k] / clients if reduce.divided else found[name][k]
                entries[k] = value.to(like.device, like.dtype)
            up[name] = entries
        return type(self.like)(**up), share * self.most


def singly(method: Method) -> Method:
    """The method, whose uploads are not reduced where its clients are.

    Raises:
        SettingError: it does not add up.
    """
    turn: Method | None = method
    while turn is not None:
        if not turn.up:
            raise SettingError(
                f"secure_aggregation hides what clients send, and {method.name} sends nothing: leave it out"
            )
        if not sums(turn):
            name = next(n for n, c in turn.up.items() if not isinstance(c.reduce, Sum))
            raise SettingError(
                f"secure_aggregation shows the server sums only, and that of {method.name} needs every upload on "
                f"channel {name!r}: leave it out, or use a method that adds up, such as fedavg"
            )
        turn = turn.next
    alone = {n: replace(c, reduce=keep_all) for n, c in method.up.items()}
    following, opening = method.next and singly(method.next), method.opening and singly(method.opening)
    return replace(method, up=alone, next=following, opening=opening)


@dataclass
class SecureClients:
    """The clients of `inner`, which must have begun with `singly(method)`, behind secure sums.

    Args:
        inner: where the clients are.
        method: the method as it is.
        session: bytes that name the run.
        bound: the largest absolute value of any number that is sent.
        most: the largest weight of a client.
        threshold: clients that must stay to the end of a sum; 0: two thirds.
    """

    inner: Clients
    method: Method
    session: bytes
    bound: float = 64.0
    most: float = 2.0**20
    threshold: int = 0

    @property
    def groups(self) -> tuple[Group, ...]:
        """Who has which architecture."""
        return self.inner.groups

    def hear(self, message: Message, timed: Timed = untimed) -> Iterator[Part]:
        """Let clients take their turns, and give one part with their sum.

        Raises:
            OutOfRange: a client's number does not fit.
            TooFew: fewer clients than the threshold have an answer.
        """
        turn, net = turn_of(self.method, message), self.groups[0].net
        parts = list(self.inner.hear(message, timed))
        skipped = torch.cat([part.skipped for part in parts])
        culprit = next((part.culprit for part in parts if part.culprit), "")
        steps, down = sum(part.steps for part in parts), sum(part.traffic.down for part in parts)
        point = FixedPoint(len(message.ids), self.bound)
        values: dict[int, Floats] = {}
        like: Any = None
        for part in parts:
            for i, client in enumerate(part.ids.tolist()):
                like = tree_map(lambda x, i=i: x[i], part.up)
                about = self.bound, self.most, message.number, client
                values[client] = flattened(turn, net, like, part.weights[i], *about)
        if not values:
            yield parts[0]._replace(skipped=skipped, culprit=culprit, traffic=Traffic(0, down), steps=steps)
            return
        session = b"%s, round %d, exchange %d" % (self.session, message.number, message.exchange)
        found = secure_sum(values, point, session, self.threshold or enough(len(message.ids)))
        up, weight = SumOf(turn, net, like, self.most).reduced(found.values, len(found.clients))
        ids, weights = torch.tensor(found.clients), torch.cat([part.weights for part in parts])
        alike = torch.full_like(weights, weight / len(ids))
        yield Part(ids, alike, up, skipped, culprit, Traffic(found.up, down + found.down), steps, parts[0].rate)

    def watched(self, tell: TellNode) -> None:
        """See `Clients`."""
        self.inner.watched(tell)

    def there(self, able: Tensor) -> Tensor:
        """See `Clients`."""
        return self.inner.there(able)

    def keep(self, ids: Tensor) -> None:
        """See `Clients`."""
        self.inner.keep(ids)

    def judge(self, exam: Exam) -> Mapping[str, Marks]:
        """See `Clients`."""
        return self.inner.judge(exam)

    def state(self, client: int) -> Any:
        """See `Clients`."""
        return self.inner.state(client)

    def saved(self) -> Any:
        """See `Clients`."""
        return self.inner.saved()

    def restore(self, saved: Any) -> None:
        """See `Clients`."""
        self.inner.restore(saved)

    def close(self) -> None:
        """See `Clients`."""
        self.inner.close()
