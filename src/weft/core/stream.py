"""Random streams: every draw is a function of (seed, purpose, round, client), never of what ran before.

So it is the same under every executor and every chunking, and there is no generator state to save.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor


def stream(seed: int, purpose: str, *ids: int) -> np.random.Generator:
    """A host-side generator for one purpose, such as the batches of client 7 in round 3.

    >>> bool(stream(1, "cohort", 5).random() == stream(1, "cohort", 5).random())
    True
    """
    return np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, code(purpose), *ids])))


def streams(seed: int, purposes: Sequence[str], *ids: int, each: Sequence[int]) -> Iterator[np.random.Generator]:
    """The generators of ``stream(seed, purpose, *ids, k)`` for every k of `each`, for one purpose after the other.

    Several times as fast. It is one generator that starts anew, so one is to be used before the next is asked for.

    >>> bool(next(streams(1, ["cohort"], 5, each=[3])).random() == stream(1, "cohort", 5, 3).random())
    True
    """
    bits = np.random.Philox(key=0)
    start, generator = bits.state, np.random.Generator(bits)
    codes = np.repeat(np.asarray([code(purpose) for purpose in purposes], dtype=np.uint32), len(each))
    last = np.tile(np.asarray(each, dtype=np.uint32), len(purposes))
    for key in _keys([*_words(seed), codes, *(w for i in ids for w in _words(i)), last]):
        start["state"]["key"] = key
        bits.state = start
        yield generator


Uint32s = np.ndarray[Any, np.dtype[np.uint32]]


def _words(number: int) -> list[int]:
    """As numpy's SeedSequence cuts a number: 32 bits each, the lowest first."""
    return [number & 0xFFFFFFFF, *(_words(number >> 32) if number >> 32 else [])]


def _keys(entropy: Sequence[int | Uint32s]) -> np.ndarray[tuple[int, int], np.dtype[np.uint64]]:
    """Philox keys [k, 2] that SeedSequence gives for k sequences of words, all at once; a number is a word of all.

    The hash is that of numpy's SeedSequence (O'Neill's seed_seq_fe, with a pool of four words).
    """
    words = np.broadcast_arrays(*(np.asarray(w, dtype=np.uint32) for w in [*entropy, *[0] * (4 - len(entropy))]))
    constant, factor = 0x43B0D7E5, 0x931E8875

    def hashed(x: Uint32s) -> Uint32s:
        nonlocal constant
        x = x ^ np.uint32(constant)
        constant = constant * factor & 0xFFFFFFFF
        x = x * np.uint32(constant)
        return x ^ (x >> np.uint32(16))

    def mixed(x: Uint32s, y: Uint32s) -> Uint32s:
        z: Uint32s = np.uint32(0xCA01F9DD) * x - np.uint32(0x4973F715) * y
        return z ^ (z >> np.uint32(16))

    pool = [hashed(w) for w in words[:4]]
    for i in range(4):
        for j in range(4):
            if i != j:
                pool[j] = mixed(pool[j], hashed(pool[i]))
    for word in words[4:]:
        pool = [mixed(p, hashed(word)) for p in pool]
    constant, factor = 0x8B51F9DD, 0x58F38DED
    low0, high0, low1, high1 = (hashed(p).astype(np.uint64) for p in pool)
    return np.stack([low0 | high0 << np.uint64(32), low1 | high1 << np.uint64(32)], axis=1)


def code(purpose: str) -> int:
    """The number under which a purpose enters a stream."""
    return zlib.crc32(purpose.encode())


def fold(key: Tensor, number: int | Tensor) -> Tensor:
    """A new key from an int64 `key` and a number: one stream for each step, layer or channel."""
    return _scramble(_scramble(key) ^ ((number * 0x9E3779B1 + 0x7F4A7C15) & 0xFFFFFFFF))


def uniform(key: Tensor, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Numbers in [0, 1) of the given shape from an int64 `key`: a counter through a 32-bit hash.

    Made of tensor arithmetic only, so that ``vmap`` over keys gives each client its own numbers.
    """
    return _counted(key, shape).to(dtype) / (1 << 24)


def at_least(p: float, key: Tensor, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """1 where `uniform` gives `p` or more, with probability 1 - p, and 0 elsewhere.

    Of numbers: on a CPU, operations that give or take bools are five times as slow.
    """
    least = math.ceil(p * (1 << 24))
    return (_counted(key, shape).float() - (least - 1)).clamp(0, 1).to(dtype)  # of whole numbers, so nothing between


def _counted(key: Tensor, shape: Sequence[int]) -> Tensor:
    """Random int32 under 2 ** 24. Keys are int64; on many numbers that would take twice as long."""
    counter = torch.arange(math.prod(shape), device=key.device, dtype=torch.int32).reshape(tuple(shape))
    bits = _mixed(_mixed(counter + 0x3C6EF372) ^ _scramble(key).to(torch.int32))
    return (bits >> 8) & 0xFFFFFF


def _mixed(x: Tensor) -> Tensor:
    """As `_scramble`, on int32, whose products wrap around and whose sign a shift would spread."""
    x = (x ^ ((x >> 16) & 0xFFFF)) * (0x85EBCA6B - 2**32)
    x = (x ^ ((x >> 13) & 0x7FFFF)) * (0xC2B2AE35 - 2**32)
    return x ^ ((x >> 16) & 0xFFFF)


def _scramble(x: Tensor) -> Tensor:
    """The finalising mix of MurmurHash3 on the low 32 bits (Appleby, 2011)."""
    x = x & 0xFFFFFFFF
    x = ((x ^ (x >> 16)) * 0x85EBCA6B) & 0xFFFFFFFF
    x = ((x ^ (x >> 13)) * 0xC2B2AE35) & 0xFFFFFFFF
    return x ^ (x >> 16)
