"""A client's side of a secure sum: what it says in each of the four steps, as bytes.

Bonawitz et al.: "Practical Secure Aggregation for Privacy-Preserving Machine Learning", CCS 2017, Figure 4 without the
parts in red, which is the protocol against a server and clients that follow it but are curious.
"""

from __future__ import annotations

import os

import numpy as np

from weft.privacy import shamir
from weft.privacy.keys import Pair, Words, mask, seal, unseal
from weft.privacy.secure_messages import (
    KEYS,
    REVEALED,
    SEALED,
    SURVIVOR,
    ProtocolError,
    envelope,
    pairwise,
    read,
    written,
)


class Client:
    """One client in one sum. Its four methods are called in this order, each once; it may vanish after any of them.

    Args:
        me: its number, a whole number that no other client of the sum has.
        session: bytes that name the run, the round and the exchange, the same at all parties.
        threshold: how many clients must be there until the end; more than half of those who begin.
    """

    def __init__(self, me: int, session: bytes, threshold: int) -> None:
        self.me, self._session, self._threshold = me, session, threshold
        self._sealing, self._masking, self._own = Pair(), Pair(), os.urandom(shamir.SECRET)
        self._public: dict[int, tuple[bytes, bytes]] = {}  # client -> its two public keys, in order of clients
        self._kept = b""  # its own share of its own seed
        self._sealed: dict[int, bytes] = {}  # client -> what it has sealed for this one
        self._said = 0

    def keys(self) -> bytes:
        """First: two public keys."""
        self._step(0)
        return written(KEYS, [(self.me, self._sealing.public, self._masking.public)])

    def shares(self, roster: bytes) -> bytes:
        """Second: for each other client of the roster, shares of the two secrets that may be needed to unmask the sum.

        Raises:
            ProtocolError: the roster has too few clients, or not this one, or one twice.
        """
        self._step(1)
        rows = read(KEYS, roster)
        self._public = {
            int(r["client"]): (bytes(r["sealing"]), bytes(r["masking"])) for r in np.sort(rows, order="client")
        }
        mine = self._public.get(self.me)
        if len(self._public) != len(rows) or mine != (self._sealing.public, self._masking.public):
            raise ProtocolError(f"the roster that client {self.me} got has it wrong, or a client twice")
        count = len(rows)
        if count < 2:
            raise ProtocolError("a sum over one client is what that client has sent: secure aggregation needs two")
        if not count / 2 < self._threshold <= count:
            raise ProtocolError(
                f"a threshold of {self._threshold} is not more than half of {count} clients, and at most all"
            )
        masking = shamir.split(self._masking.private, count, self._threshold)
        own = shamir.split(self._own, count, self._threshold)
        sealed = []
        for client, for_masking, for_own in zip(self._public, masking, own, strict=True):
            if client == self.me:
                self._kept = for_own
                continue
            about = envelope(self._session, self.me, client)
            sealed.append((client, seal(self._shared(client), for_masking + for_own, about)))
        return written(SEALED, sealed)

    def masked(self, envelopes: bytes, values: Words) -> bytes:
        """Third: the values, of which nobody can tell anything but in the sum over all who get this far.

        Raises:
            ProtocolError: too few clients have sent shares, or somebody who is not on the roster.
        """
        self._step(2)
        rows = read(SEALED, envelopes)
        self._sealed = {int(r["client"]): bytes(r["sealed"]) for r in rows}
        if len(self._sealed) != len(rows) or not set(self._sealed) <= set(self._public) - {self.me}:
            raise ProtocolError(f"client {self.me} got shares of clients that are not on its roster")
        if len(self._sealed) + 1 < self._threshold:
            raise ProtocolError(f"{len(self._sealed) + 1} clients have shared keys, and {self._threshold} are needed")
        total = values + mask(self._own, len(values), values.dtype)
        for other in self._sealed:
            seed = self._masking.agree(self._public[other][1], pairwise(self._session, self.me, other, b"mask"))
            pad = mask(seed, len(values), values.dtype)
            total = total + pad if other > self.me else total - pad
        return total.tobytes()

    def reveal(self, survivors: bytes) -> bytes:
        """Fourth: of everybody who has sent values the share of its own seed, of the others that of its masking key.

        Never both of one client, since this is answered once.

        Raises:
            ProtocolError: fewer clients than the threshold have sent values, or somebody who had shared no keys.
        """
        self._step(3)
        alive = set(read(SURVIVOR, survivors)["client"].tolist())
        known = set(self._sealed) | {self.me}
        if len(alive) < self._threshold or not alive <= known:
            raise ProtocolError(f"client {self.me} will not reveal shares for a sum of {len(alive)} clients")
        told = [(self.me, True, self._kept)] if self.me in alive else []
        for other, sealed in self._sealed.items():
            try:
                plain = unseal(self._shared(other), sealed, envelope(self._session, other, self.me))
            except ValueError as error:
                raise ProtocolError(str(error)) from None
            share = plain[shamir.SHARE :] if other in alive else plain[: shamir.SHARE]
            told.append((other, other in alive, share))
        return written(REVEALED, told)

    def _shared(self, other: int) -> bytes:
        """The key for what is sealed between this client and another one."""
        return self._sealing.agree(self._public[other][0], pairwise(self._session, self.me, other, b"seal"))

    def _step(self, number: int) -> None:
        if self._said != number:
            raise ProtocolError(f"client {self.me} was asked for step {number + 1} after {self._said} steps")
        self._said += 1
