"""Shamir's secret sharing: any `threshold` of the shares give the secret, fewer say nothing about it.

Shamir: "How to share a secret", Communications of the ACM 22 (11), 1979. Over the field of 2^521 - 1 elements.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence

PRIME = 2**521 - 1  # a Mersenne prime
SECRET, SHARE = 32, 66  # bytes


def split(secret: bytes, holders: int, threshold: int) -> list[bytes]:
    """The shares of a secret of 32 bytes for holders 1, 2, ..., `holders`, in that order."""
    if len(secret) != SECRET:
        raise ValueError(f"a secret has {SECRET} bytes, not {len(secret)}")
    if not 1 <= threshold <= holders:
        raise ValueError(f"threshold = {threshold} of {holders} shares: use from 1 to {holders}")
    polynomial = [secrets.randbelow(PRIME) for _ in range(threshold - 1)] + [int.from_bytes(secret, "little")]
    shares = []
    for x in range(1, holders + 1):
        y = 0
        for coefficient in polynomial:
            y = (y * x + coefficient) % PRIME
        shares.append(y.to_bytes(SHARE, "little"))
    return shares


def at_zero(holders: Sequence[int]) -> dict[int, int]:
    """Holder -> the factor of its share in the secret (Lagrange's interpolation at 0)."""
    factors = {}
    for i in holders:
        above, below = 1, 1
        for j in holders:
            if j != i:
                above = above * j % PRIME
                below = below * (j - i) % PRIME
        factors[i] = above * pow(below, -1, PRIME) % PRIME
    return factors


def combine(shares: Mapping[int, bytes], factors: Mapping[int, int]) -> bytes:
    """The secret, from the shares of the holders for whom `factors` were made.

    Raises:
        ValueError: the shares are not those of one secret of 32 bytes.
    """
    whole = sum(factor * int.from_bytes(shares[holder], "little") for holder, factor in factors.items()) % PRIME
    if whole >> (8 * SECRET):
        raise ValueError("these shares do not belong to one secret")
    return whole.to_bytes(SECRET, "little")
