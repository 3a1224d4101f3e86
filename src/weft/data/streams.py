"""Test streams: what else a client is asked, beside its own test examples, and in which order.

A stream is made of test examples only, those of the client and those of others. It is judged like the test split, and
like it chooses nothing. Every stream of every client is asked afresh, in its order, for views that learn as they go.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from weft.core.errors import SettingError
from weft.core.stream import stream
from weft.data.federated import FederatedData, Rows, Stream

Array = np.ndarray[Any, np.dtype[Any]]
Kind = Callable[[Array, Array, np.random.Generator], tuple[Array, Array]]
"""(own examples, as many or fewer of others, both shuffled; rng) -> (row numbers in order, which are of others)."""


def external(own: Array, others: Array, rng: np.random.Generator) -> tuple[Array, Array]:
    """As many test examples of other clients as the client has itself."""
    return others, np.ones(len(others), dtype=bool)


def mixture(own: Array, others: Array, rng: np.random.Generator) -> tuple[Array, Array]:
    """Its own test examples and as many of others, in random order."""
    rows, foreign = switch(own, others, rng)
    order = rng.permutation(len(rows))
    return rows[order], foreign[order]


def switch(own: Array, others: Array, rng: np.random.Generator) -> tuple[Array, Array]:
    """Its own test examples first, then as many of others: the distribution changes on the way."""
    return np.concatenate([own, others]), np.repeat([False, True], [len(own), len(others)])


KINDS: dict[str, Kind] = {"external": external, "mixture": mixture, "switch": switch}
"""By name; each has a form ``NAME-domain``, whose others are of domains that the client does not train on."""


def known() -> list[str]:
    """The names of all streams."""
    return [*KINDS, *(f"{name}-domain" for name in KINDS)]


def with_streams(data: FederatedData, names: Sequence[str], seed: int = 0) -> FederatedData:
    """The same federation with test streams, name -> stream; the same seed gives the same bits.

    Others' examples are drawn without replacement, with equal chances for all of them.

    Raises:
        SettingError: there is no such stream, or nobody has test examples that it could be made of.
    """
    made = {name: _made(data, name, seed) for name in names}
    note = {
        **data.manifest,
        "recipe": {**data.manifest["recipe"], "stream": list(names)},
        "streams": {name: _hash(s) for name, s in made.items()},
    }
    return replace(data, streams=made, manifest=note)


def _made(data: FederatedData, name: str, seed: int) -> Stream:
    kind = KINDS.get(name.removesuffix("-domain"))
    if kind is None:
        raise SettingError(f"stream = {name!r} is not known: use {', '.join(known())}")
    domain = data.source.domain if name.endswith("-domain") else None
    if domain is None and name.endswith("-domain"):
        raise SettingError(f"stream = {name!r} needs data with domains, such as digits, or --domain")
    tests, owner = data.test.rows, np.repeat(np.arange(data.clients()), data.test.counts)
    rows, foreign = [], []
    for k in range(data.clients()):
        own, rng = data.test.client(k), stream(seed, f"stream {name}", k)
        others = tests[owner != k]
        if domain is not None:
            mine = np.union1d(domain[data.train.client(k)], domain[own])
            others = others[~np.isin(domain[others], mine)]
        drawn = rng.permutation(others)[: len(own)]
        found, outside = kind(rng.permutation(own), drawn, rng)
        rows.append(found)
        foreign.append(outside)
    if not any(f.any() for f in foreign):
        raise SettingError(f"stream = {name!r} finds no test example of others for any client: leave it out")
    return Stream(Rows.of(rows), np.concatenate(foreign))


def _hash(made: Stream) -> str:
    digest = hashlib.sha256()
    for part in made.rows:
        digest.update(f"{len(part)}:".encode())
        digest.update(np.ascontiguousarray(part, dtype="<i8").data)
    return digest.hexdigest()
