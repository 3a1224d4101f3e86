"""Synthetic domains: the images of any set as if they came from several sources, for a shift of features alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from weft.core.errors import SettingError
from weft.core.stream import stream
from weft.data.scaling import moments
from weft.data.source import Source

Array = np.ndarray[Any, np.dtype[Any]]
Change = Callable[[Array, np.random.Generator], Array]
"""(float32 images [n, channels, height, width] in [0, 1], rng) -> the same in another domain, in [0, 1]."""


def _blurred(x: Array, rng: np.random.Generator) -> Array:
    """Mean over 3 x 3 pixels, twice."""
    for axis in (2, 3, 2, 3):
        wide = np.pad(x, [(1, 1) if a == axis else (0, 0) for a in range(4)], mode="edge")
        n = x.shape[axis]
        x = np.add.reduce([wide.take(np.arange(i, i + n), axis) for i in range(3)]) / 3
    return x


DOMAINS: dict[str, Change] = {
    "plain": lambda x, rng: x,
    "rotated": lambda x, rng: np.rot90(x, axes=(2, 3)),
    "upside-down": lambda x, rng: x[:, :, ::-1, ::-1],
    "inverted": lambda x, rng: 1 - x,
    "blurred": _blurred,
    "noisy": lambda x, rng: (x + 0.2 * rng.standard_normal(x.shape, np.float32)).clip(0, 1),
    "pale": lambda x, rng: 0.5 + 0.3 * (x - 0.5),
}
"""By name: what each does to an image."""


def with_domains(source: Source, names: Sequence[str], seed: int = 0) -> Source:
    """The same set, of which every image is put into one of these domains.

    Each label of each half, training and test, is divided evenly and at random; nothing is there twice. Shift and
    scale are learnt anew on the training half.

    Raises:
        SettingError: it is no image set, has domains already, or a name is unknown or given twice.
    """
    unknown = [name for name in names if name not in DOMAINS]
    if unknown or len(names) < 2 or len(set(names)) < len(names):
        raise SettingError(f"domain = {', '.join(names)}: use two or more of {', '.join(DOMAINS)}, each once")
    if source.kind != "image" or source.domain is not None:
        why = "has domains of its own" if source.kind == "image" else f"holds {source.kind}, not images"
        raise SettingError(f"domain = {', '.join(names)} needs an image set without domains, and {source.name} {why}")
    if "rotated" in names and source.x.shape[2] != source.x.shape[3]:
        raise SettingError(f"domain = 'rotated' needs square images, and those of {source.name} are not: leave it out")
    rng, n = stream(seed, "domains"), len(source.y)
    half = np.zeros(n, dtype=bool) if source.test is None else source.test
    order = np.lexsort((rng.random(n), source.y, half))
    domain = np.empty(n, dtype=np.int64)
    domain[order] = np.arange(n) % len(names)
    whole = source.x.dtype == np.uint8
    low, high = (0.0, 255.0) if whole else (float(source.x.min()), float(source.x.max()))
    x = source.x.copy()
    for i, name in enumerate(names):
        rows = np.flatnonzero(domain == i)
        unit = (source.x[rows].astype(np.float32) - low) / max(high - low, 1e-12)
        changed = DOMAINS[name](unit, rng) * (high - low) + low
        x[rows] = np.rint(changed) if whole else changed
    shift, scale = moments(x, source.test)
    note = f"{source.note} Domains made of it: {', '.join(names)}."
    return replace(source, x=x, domain=domain, shift=shift, scale=scale, note=note)
