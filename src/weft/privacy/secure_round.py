"""A secure sum among clients of this process: the protocol as over a network, with every message as bytes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from weft.privacy.fixed_point import FixedPoint, Floats
from weft.privacy.secure_client import Client
from weft.privacy.secure_server import Server

STEPS = 4


class Summed(NamedTuple):
    """The outcome of a secure sum."""

    values: Floats  # the sum of the vectors of all clients that have sent theirs
    clients: list[int]  # who they are, ascending
    up: int  # bytes that all clients have sent
    down: int  # bytes that they have received


def secure_sum(
    values: Mapping[int, Floats],
    point: FixedPoint,
    session: bytes,
    threshold: int | None = None,
    vanish: Mapping[int, int] | None = None,
) -> Summed:
    """Play all steps.

    Args:
        values: client -> its vector, all of one length.
        point: the fixed point, for at least so many clients.
        session: names the run, the round and the exchange.
        threshold: how many clients must stay; None: `enough(clients)`.
        vanish: client -> how many steps it makes (0 to 3) before it vanishes.

    Raises:
        ProtocolError: fewer than two clients, whose sum would be what one of them has sent.
        OutOfRange: a value does not fit.
        TooFew: fewer clients are left than the threshold.
    """
    needed = threshold or enough(len(values))
    clients = {k: Client(k, session, needed) for k in values}
    server = Server(session, needed, len(next(iter(values.values()))), point)
    last = {k: (vanish or {}).get(k, STEPS) for k in clients}

    keys = {k: c.keys() for k, c in clients.items() if last[k] >= 1}
    roster = server.roster(keys)
    shares = {k: clients[k].shares(m) for k, m in roster.items() if last[k] >= 2}
    envelopes = server.envelopes(shares)
    masked = 0
    for k, message in envelopes.items():
        if last[k] >= 3:
            answer = clients[k].masked(message, point.encode(values[k]))
            server.add(k, answer)
            masked += len(answer)
    survivors = server.survivors()
    revealed = {k: clients[k].reveal(m) for k, m in survivors.items() if last[k] >= 4}
    words, alive = server.total(revealed)
    up = masked + sum(len(m) for said in (keys, shares, revealed) for m in said.values())
    down = sum(len(m) for said in (roster, envelopes, survivors) for m in said.values())
    return Summed(point.decode(words), alive, up, down)


def enough(clients: int) -> int:
    """The usual threshold: the least number of clients that is more than two thirds of them."""
    return clients - (clients - 1) // 3
