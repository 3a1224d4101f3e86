"""What secure aggregation needs of cryptography: key agreement, encryption of shares, and masks from seeds.

X25519 (RFC 7748), HKDF with SHA-256 (RFC 5869), AES-GCM and AES-CTR with 256 bits, all from the package `cryptography`.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from weft.core.errors import SettingError

try:
    from cryptography.exceptions import InvalidTag
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
    from cryptography.hazmat.primitives.ciphers import Cipher
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM
    from cryptography.hazmat.primitives.ciphers.algorithms import AES
    from cryptography.hazmat.primitives.ciphers.modes import CTR
    from cryptography.hazmat.primitives.kdf.hkdf import HKDF
except ImportError:
    raise SettingError("secure aggregation needs the package cryptography: pip install 'weft[privacy]'") from None

Words = np.ndarray[Any, np.dtype[Any]]
"""A vector of unsigned integers, in which sums wrap around: arithmetic modulo 2^64 or 2^32."""

PUBLIC, NONCE, TAG = 32, 12, 16  # bytes


class Pair:
    """A private key and its public key; fresh for every sum."""

    def __init__(self, private: bytes | None = None) -> None:
        made = X25519PrivateKey.generate() if private is None else X25519PrivateKey.from_private_bytes(private)
        self._private = made
        raw = serialization.Encoding.Raw, serialization.PublicFormat.Raw
        self.public: bytes = made.public_key().public_bytes(*raw)

    @property
    def private(self) -> bytes:
        """The private key, 32 bytes: what is shared among the others."""
        return self._private.private_bytes_raw()

    def agree(self, public: bytes, purpose: bytes) -> bytes:
        """The 32 bytes that only the owners of the two private keys can compute."""
        common = self._private.exchange(X25519PublicKey.from_public_bytes(public))
        return HKDF(hashes.SHA256(), 32, None, purpose).derive(common)


def seal(key: bytes, plain: bytes, about: bytes) -> bytes:
    """Encrypt; `about` is not secret, but nobody can exchange it."""
    nonce = os.urandom(NONCE)
    return nonce + AESGCM(key).encrypt(nonce, plain, about)


def unseal(key: bytes, sealed: bytes, about: bytes) -> bytes:
    """Decrypt.

    Raises:
        ValueError: it was not sealed with this key and about this.
    """
    try:
        return AESGCM(key).decrypt(sealed[:NONCE], sealed[NONCE:], about)
    except InvalidTag:
        raise ValueError("a share was not encrypted by the client that it is said to come from") from None


def mask(seed: bytes, length: int, kind: np.dtype[Any]) -> Words:
    """`length` words that nobody can tell from random without the seed of 32 bytes."""
    stream = Cipher(AES(seed), CTR(bytes(16))).encryptor()  # a seed is used once, so the counter may start from 0
    return np.frombuffer(stream.update(bytes(length * kind.itemsize)), kind)
