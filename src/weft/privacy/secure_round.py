"""A secure sum among clients of this process: the protocol as over a network, with every message as bytes."""

from __future__ import annotations

from collections.abc import Mapping

from weft.privacy.fixed_point import FixedPoint, Floats
from weft.privacy.secure_client import Client
from weft.privacy.secure_server import Server

STEPS = 4


def secure_sum(
    values: Mapping[int, Floats],
    point: FixedPoint,
    session: bytes,
    threshold: int | None = None,
    vanish: Mapping[int, int] | None = None,
) -> tuple[Floats, list[int]]:
    """(the sum of the vectors of all clients that have sent theirs, who they are).

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
    clients = {k: Client(k, session, threshold or enough(len(values))) for k in values}
    length = len(next(iter(values.values())))
    server = Server(session, threshold or enough(len(values)), length, point)
    last = {k: (vanish or {}).get(k, STEPS) for k in clients}

    roster = server.roster({k: c.keys() for k, c in clients.items() if last[k] >= 1})
    envelopes = server.envelopes({k: clients[k].shares(m) for k, m in roster.items() if last[k] >= 2})
    for k, message in envelopes.items():
        if last[k] >= 3:
            server.add(k, clients[k].masked(message, point.encode(values[k])))
    words, alive = server.total({k: clients[k].reveal(m) for k, m in server.survivors().items() if last[k] >= 4})
    return point.decode(words), alive


def enough(clients: int) -> int:
    """The usual threshold: two thirds of the clients, rounded up, and always more than half."""
    return clients - (clients - 1) // 3
