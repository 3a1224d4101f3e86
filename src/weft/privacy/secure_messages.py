"""The messages of a secure sum: records of fixed size, one after the other."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from weft.privacy.keys import NONCE, PUBLIC, TAG
from weft.privacy.shamir import SHARE

Records = np.ndarray[Any, np.dtype[Any]]

KEYS = np.dtype([("client", "<i8"), ("sealing", f"V{PUBLIC}"), ("masking", f"V{PUBLIC}")])
SEALED = np.dtype([("client", "<i8"), ("sealed", f"V{NONCE + 2 * SHARE + TAG}")])  # to whom, or from whom
SURVIVOR = np.dtype([("client", "<i8")])
REVEALED = np.dtype([("client", "<i8"), ("survived", "?"), ("share", f"V{SHARE}")])


class ProtocolError(ValueError):
    """A message that the protocol does not allow here, or that is damaged; `client`: who sent it, if that is known."""

    def __init__(self, why: str, client: int | None = None) -> None:
        super().__init__(why)
        self.client = client


def written(kind: np.dtype[Any], rows: Iterable[tuple[Any, ...]]) -> bytes:
    """Records as bytes."""
    return np.array(list(rows), kind).tobytes()


def read(kind: np.dtype[Any], message: bytes, client: int | None = None) -> Records:
    """Bytes, which `client` has sent, as records."""
    if len(message) % kind.itemsize:
        raise ProtocolError(f"a message of {len(message)} bytes is not made of records of {kind.itemsize}", client)
    return np.frombuffer(message, kind)


def pairwise(session: bytes, a: int, b: int, purpose: bytes) -> bytes:
    """For what two clients agree on a key in this sum."""
    low, high = sorted((a, b))
    return b"weft secure sum, " + purpose + b"|" + _number(low) + _number(high) + session


def envelope(session: bytes, sender: int, receiver: int) -> bytes:
    """What is known about a sealed share: from whom, for whom, in which sum."""
    return _number(sender) + _number(receiver) + session


def _number(client: int) -> bytes:
    return client.to_bytes(8, "little", signed=True)
