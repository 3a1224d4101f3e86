"""Numbers as integers modulo 2^bits, so that sums of masked numbers are exact."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from weft.core.errors import SettingError
from weft.core.tree import Tree
from weft.privacy.keys import Words

Floats = np.ndarray[Any, np.dtype[np.float64]]

LEAST = 16
"""Binary places below which a fixed point is too coarse for a model."""


class OutOfRange(ArithmeticError):
    """A number that is to be summed does not fit, or is not finite."""


@dataclass(frozen=True)
class FixedPoint:
    """Numbers in [-bound, bound], such that the sum of those of so many clients fits into words of 32 or 64 bits.

    Raises:
        SettingError: that leaves fewer than 16 binary places.
    """

    clients: int
    bound: float = 64.0
    bits: int = 64

    def __post_init__(self) -> None:
        if self.bits not in (32, 64):
            raise SettingError(f"bits = {self.bits} is no size of a word: use 32 or 64")
        if not 1 <= self.bound < math.inf:  # weights are sent as shares, up to 1
            raise SettingError(f"secure_range = {self.bound} is no range: use 1 or more, such as 64")
        if self.places < LEAST:
            raise SettingError(
                f"secure_range = {self.bound:g} and {self.clients} clients leave {self.places} binary places of "
                f"{self.bits} bits: use at most {2.0 ** (self.bits - 1 - LEAST) / (self.clients + 1):.3g}"
            )

    @property
    def places(self) -> int:
        """Binary places: numbers are rounded to multiples of 2^-places, half of which is the error of each."""
        return math.floor(self.bits - 1 - math.log2(self.bound * (self.clients + 1)))

    @property
    def kind(self) -> np.dtype[Any]:
        """The type of a word, little-endian."""
        return np.dtype(f"<u{self.bits // 8}")

    def encode(self, values: Floats) -> Words:
        """The words of some numbers.

        Raises:
            OutOfRange: one is not finite, or beyond the bound.
        """
        most = float(np.abs(values).max(initial=0.0))
        if not most <= self.bound:  # also where it is not a number
            raise OutOfRange(f"{most:g} is beyond the range {self.bound:g} of the fixed point")
        return np.rint(np.ldexp(values, self.places)).astype(np.int64).astype(self.kind)

    def decode(self, words: Words) -> Floats:
        """The numbers of a sum of words."""
        signed: Floats = words.view(np.dtype(f"<i{self.bits // 8}")).astype(np.float64)
        return np.ldexp(signed, -self.places)


@dataclass(frozen=True)
class Layout:
    """Where the entries of named trees lie in one vector: (name of the tree, entry, shape), by name."""

    places: tuple[tuple[str, str, tuple[int, ...]], ...]

    @staticmethod
    def of(trees: Mapping[str, Tree]) -> Layout:
        """The layout of these trees, the same for every client that sends the same entries."""
        return Layout(tuple((n, k, tuple(t[k].shape)) for n, t in sorted(trees.items()) for k in sorted(t)))

    @property
    def length(self) -> int:
        """Numbers in the vector."""
        return sum(math.prod(shape) for _, _, shape in self.places)

    def flat(self, trees: Mapping[str, Tree]) -> Floats:
        """The trees as one vector."""
        parts = [trees[n][k].detach().to("cpu", torch.float64).reshape(-1).numpy() for n, k, _ in self.places]
        return np.concatenate(parts) if parts else np.zeros(0)

    def trees(self, vector: Floats) -> dict[str, Tree]:
        """The trees again, in float64."""
        found: dict[str, Tree] = {}
        start = 0
        for name, entry, shape in self.places:
            size = math.prod(shape)
            found.setdefault(name, {})[entry] = torch.from_numpy(vector[start : start + size].copy()).reshape(shape)
            start += size
        return found
