"""The server's side of a secure sum. It learns the sum, and who took part; never what a single client has sent.

Bonawitz et al. 2017, as in `secure_client`. Whoever carries the messages (a loop, Flower) calls the methods in order.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from weft.privacy import shamir
from weft.privacy.fixed_point import FixedPoint
from weft.privacy.keys import Pair, Words, mask
from weft.privacy.secure_messages import KEYS, REVEALED, SEALED, SURVIVOR, ProtocolError, pairwise, read, written


class TooFew(ArithmeticError):
    """Fewer clients are left than the threshold, so the sum cannot be unmasked; nothing was learnt."""

    def __init__(self, step: str, there: int, needed: int) -> None:
        super().__init__(f"secure aggregation: {there} clients {step}, and {needed} are needed: the round is lost")


class Server:
    """One sum of vectors of `length` words. Answers that never come are simply not in the mappings."""

    def __init__(self, session: bytes, threshold: int, length: int, point: FixedPoint) -> None:
        self._session, self._threshold, self._point = session, threshold, point
        self._roster: dict[int, int] = {}  # client -> its place among the holders of shares, from 1
        self._masking: dict[int, bytes] = {}  # client -> its public masking key
        self._shared: set[int] = set()
        self._alive: set[int] = set()
        self._closed = False
        self._sum: Words = np.zeros(length, point.kind)

    def roster(self, answers: Mapping[int, bytes]) -> dict[int, bytes]:
        """After the first step: what each client gets for the second one."""
        self._enough("have sent keys", len(answers))
        if len(answers) > self._point.clients:
            raise ProtocolError(f"{len(answers)} clients are more than the {self._point.clients} whose sum fits")
        rows = [read(KEYS, answers[client], client) for client in sorted(answers)]
        for client, row in zip(sorted(answers), rows, strict=True):
            if len(row) != 1 or int(row["client"][0]) != client:
                raise ProtocolError(f"the keys that client {client} has sent are not its own", client)
            self._masking[client] = bytes(row["masking"][0])
        self._roster = {client: i + 1 for i, client in enumerate(sorted(answers))}
        whole = np.concatenate(rows).tobytes()
        return dict.fromkeys(self._roster, whole)

    def envelopes(self, answers: Mapping[int, bytes]) -> dict[int, bytes]:
        """After the second step: to each client the shares that the others have sealed for it."""
        self._enough("have shared keys", len(answers))
        self._shared = set(answers)
        for_whom: dict[int, list[tuple[int, bytes]]] = {client: [] for client in sorted(answers)}
        for sender in sorted(answers):
            rows = read(SEALED, answers[sender], sender)
            if sorted(rows["client"].tolist()) != [c for c in self._roster if c != sender]:
                raise ProtocolError(f"client {sender} has not sealed one share for each other client", sender)
            for row in rows:
                if int(row["client"]) in for_whom:
                    for_whom[int(row["client"])].append((sender, bytes(row["sealed"])))
        return {client: written(SEALED, sealed) for client, sealed in for_whom.items()}

    def add(self, client: int, answer: bytes) -> None:
        """In the third step: the masked values of one client, which are added and forgotten."""
        if self._closed or client in self._alive or client not in self._shared:
            raise ProtocolError(f"client {client} sends values too late, twice, or without having shared keys", client)
        if len(answer) != self._sum.nbytes:
            raise ProtocolError(
                f"client {client} has sent {len(answer)} bytes of values instead of {self._sum.nbytes}", client
            )
        self._sum += np.frombuffer(answer, self._point.kind)
        self._alive.add(client)

    def survivors(self) -> dict[int, bytes]:
        """After the third step: to each client that has sent values, who has."""
        self._closed = True
        self._enough("have sent values", len(self._alive))
        whole = written(SURVIVOR, [(client,) for client in sorted(self._alive)])
        return dict.fromkeys(sorted(self._alive), whole)

    def total(self, answers: Mapping[int, bytes]) -> tuple[Words, list[int]]:
        """After the fourth step: (the sum of the values of all who have sent some, who they are)."""
        if not self._closed or not set(answers) <= self._alive:
            raise ProtocolError("shares came before the values, or of clients that have sent none")
        self._enough("have revealed shares", len(answers))
        holders = sorted(answers)[: self._threshold]
        told: dict[int, dict[int, bytes]] = {client: {} for client in self._shared}
        for holder in holders:
            for row in read(REVEALED, answers[holder], holder):
                client = int(row["client"])
                if client not in told or bool(row["survived"]) != (client in self._alive):
                    raise ProtocolError(f"client {holder} has revealed a share that nobody asked for", holder)
                told[client][self._roster[holder]] = bytes(row["share"])
        for holder in holders:
            if any(self._roster[holder] not in shares for shares in told.values()):
                raise ProtocolError(f"client {holder} has not revealed a share of each client", holder)
        factors = shamir.at_zero([self._roster[h] for h in holders])
        for client, shares in told.items():
            try:
                secret = shamir.combine(shares, factors)
            except ValueError as error:
                raise ProtocolError(f"client {client}: {error}") from None
            if client in self._alive:
                self._sum -= mask(secret, len(self._sum), self._point.kind)
            else:
                self._without(client, secret)
        return self._sum, sorted(self._alive)

    def _without(self, gone: int, private: bytes) -> None:
        """Take out the masks that others have shared with a client that has sent no values."""
        pair = Pair(private)
        if pair.public != self._masking[gone]:
            raise ProtocolError(f"the shares of client {gone} are not those of its key")
        for other in self._alive:
            seed = pair.agree(self._masking[other], pairwise(self._session, gone, other, b"mask"))
            pad = mask(seed, len(self._sum), self._point.kind)
            if gone > other:
                self._sum -= pad
            else:
                self._sum += pad

    def _enough(self, step: str, there: int) -> None:
        if there < self._threshold:
            raise TooFew(step, there, self._threshold)
