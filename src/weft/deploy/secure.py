"""Secure aggregation over a network: uploads stay where they were made, and what the server gets is their sum.

A turn is answered without its upload, which the node holds. Four messages to each node follow, the steps of
`weft.privacy.secure_client`, in which every client is a party of its own; `weft.deploy.held` has the node's side.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from flwr.app import RecordDict
from torch import Tensor

from weft.core.clients import Part, Traffic
from weft.deploy.parts import dtype_of, received
from weft.deploy.records import Corrupt, each_of, note, noted, put_each, size
from weft.deploy.uploads import WRONG, Nodes, Turn
from weft.privacy.fixed_point import FixedPoint, Floats, OutOfRange
from weft.privacy.secure_clients import SumOf
from weft.privacy.secure_messages import ProtocolError
from weft.privacy.secure_round import enough
from weft.privacy.secure_server import Server, TooFew

log = logging.getLogger("weft.federation")
ATTEMPTS = 3
"""How often a sum is begun for which, before anything of it is revealed, too few clients are left."""
Given = TypeVar("Given")


@dataclass
class Held:
    """What clients have said of a turn, and whose uploads can still be summed."""

    clients: set[int] = field(default_factory=set)
    skipped: set[int] = field(default_factory=set)  # clients whose uploads are not finite
    culprit: str = ""
    up: int = 0  # bytes
    down: int = 0
    steps: int = 0
    rate: float = 1.0


@dataclass(frozen=True)
class Secure:
    """See `weft.deploy.uploads.Uploads`; the settings are those of `weft.privacy.secure_clients.SecureClients`."""

    bound: float
    most: float
    threshold: int = 0

    def hear(self, nodes: Nodes, turn: Turn) -> list[Part]:
        """Let clients take a turn, and have one part with their sum.

        Raises:
            TooFew: fewer clients than the threshold are left, so there is no sum, and nothing was learnt.
            OutOfRange: a client's number does not fit.
        """
        clients, held = len(turn.message.ids), Held()
        if not turn.wanted:
            return []
        needed = self.threshold or enough(clients)
        reading = SumOf(turn.method, turn.net, turn.like, self.most)
        for attempt in range(1, ATTEMPTS + 1):
            self._train(nodes, turn, needed, held)
            if held.skipped and len(held.clients) < needed:
                return [_part(turn, held)]
            summing = _Sum(nodes, turn, held, needed, reading.layout.length, FixedPoint(clients, self.bound))
            try:
                survivors = summing.masked()
                break
            except TooFew as error:
                if attempt == ATTEMPTS:
                    raise
                log.warning("round %d: %s in attempt %d of %d", turn.message.number, error, attempt, ATTEMPTS)
        values, ids = summing.unmasked(survivors)
        up, weight = reading.reduced(values, len(ids))
        part = _part(turn, held)
        alike = torch.full((len(ids),), weight / len(ids), dtype=part.rate.dtype)  # of the weights the sum is known
        return [part._replace(ids=torch.tensor(ids), weights=alike, up=up)]

    def _train(self, nodes: Nodes, turn: Turn, needed: int, held: Held) -> None:
        """Have those take their turn whose uploads are not held yet."""
        message, done = turn.message, held.clients | held.skipped
        if len(turn.wanted) < needed:
            raise TooFew("are left in the round", len(turn.wanted), needed)

        def asking(ids: list[int]) -> RecordDict:
            records = nodes.training(turn, ids)
            note(records, "hold", {"clients": len(message.ids)})
            return records

        quorum = max(nodes.quorum(turn.wanted), needed) - len(done)
        for node, ids, reply in nodes.ask("turn", turn.wanted - done, asking, max(quorum, 0)):
            try:
                said = noted(reply, "turn")
                if said["ids"] != ids or not set(said["skipped"]) <= set(ids):
                    raise Corrupt(f"its answer is not one of the clients {ids}")
                steps, rate, beyond = int(said["steps"]), float(said["rate"]), str(said["beyond"])
            except WRONG as error:
                nodes.failed(node, error, f"round {message.number} goes on without it")
                continue
            if beyond:
                raise OutOfRange(beyond)
            held.skipped |= set(said["skipped"])
            held.clients |= set(ids) - held.skipped
            held.culprit = held.culprit or str(said["culprit"])
            held.steps, held.rate = held.steps + steps, rate
            held.down += received(turn.method, message.down) * len(ids)


class _Sum:
    """One secure sum of what clients hold; whoever does not answer a step is no longer in it."""

    def __init__(self, nodes: Nodes, turn: Turn, held: Held, needed: int, length: int, point: FixedPoint) -> None:
        self._nodes, self._held, self._needed, self._point = nodes, held, needed, point
        self._round = f"round {turn.message.number}"
        self._session = f"{self._round}, exchange {turn.message.exchange}, {secrets.token_hex(16)}"
        self._server = Server(self._session.encode(), needed, length, point)
        self._node: dict[int, int] = {}  # client -> where it is

    def masked(self) -> dict[int, bytes]:
        """The first three steps, in which nothing is revealed: what goes to each client in the fourth one."""
        keys = dict(self._step("keys", dict.fromkeys(sorted(self._held.clients), b"")))
        roster = self._take(self._server.roster, keys)
        shares = dict(self._step("shares", roster))
        envelopes = self._take(self._server.envelopes, shares)
        for client, answer in self._step("masked", envelopes):
            try:
                self._server.add(client, answer)
            except ProtocolError as error:
                self._blame(client, error)
        return self._server.survivors()

    def unmasked(self, survivors: Mapping[int, bytes]) -> tuple[Floats, list[int]]:
        """The fourth step: (the sum, whose it is)."""
        words, ids = self._take(self._server.total, dict(self._step("reveal", survivors)))
        return self._point.decode(words), ids

    def _step(self, step: str, messages: Mapping[int, bytes]) -> Iterator[tuple[int, bytes]]:
        """Send clients what is theirs, and give (client, its answer) of those that answer in time."""
        held = self._held
        held.clients = set()

        def asking(ids: list[int]) -> RecordDict:
            records = RecordDict()
            put_each(records, "sum", {client: messages[client] for client in ids})
            note(records, "step", {"step": step, "sum": self._session, "ids": ids, "threshold": self._needed})
            held.down += size(records, "sum")
            return records

        for node, ids, reply in self._nodes.ask("sum", set(messages), asking):
            try:
                answers = each_of(reply, "sum", ids)
            except WRONG as error:
                self._nodes.failed(node, error, f"{self._round} goes on without it")
                continue
            held.up += size(reply, "sum")
            held.clients |= set(ids)
            self._node |= dict.fromkeys(ids, node)
            yield from answers.items()

    def _take(self, take: Callable[[Mapping[int, bytes]], Given], answers: dict[int, bytes]) -> Given:
        """What the server makes of answers, without those that are not as they should be."""
        while True:
            try:
                return take(answers)
            except ProtocolError as error:
                if error.client not in answers:
                    raise ArithmeticError(f"{self._round}: there is no secure sum, since {error}") from None
                self._blame(error.client, error)
                del answers[error.client]

    def _blame(self, client: int, error: ProtocolError) -> None:
        self._held.clients.discard(client)
        self._nodes.failed(self._node[client], Corrupt(str(error)), f"{self._round} goes on without it")


def _part(turn: Turn, held: Held) -> Part:
    """A part in which no client's answer counts yet."""
    skipped = torch.tensor(sorted(held.skipped), dtype=torch.int64)
    rate: Tensor = torch.tensor(held.rate, dtype=dtype_of(turn.like))
    traffic = Traffic(held.up, held.down)
    return Part(skipped[:0], rate.new_zeros(0), None, skipped, held.culprit, traffic, held.steps, rate)
