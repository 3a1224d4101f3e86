"""Dividing a source among clients: partition, protocol, validation and clients that never train."""

from __future__ import annotations

from itertools import pairwise
from numbers import Integral, Real
from typing import Any, Literal

import numpy as np

from weft.core.errors import SettingError
from weft.core.stream import stream
from weft.data.federated import FederatedData, Rows
from weft.data.manifest import manifest
from weft.data.partition import LABEL_SKEW, PARTITIONERS, Options, Pool, repaired, spread
from weft.data.source import Source

Array = np.ndarray[Any, np.dtype[Any]]
Parts = list[Array]

OWN_TEST = 0.2
"""Share of a client's examples that are its test, where the source has no official test for it."""
POOLED_TEST = 0.25
"""The same under the protocol ``pooled`` (PFLlib)."""
REDRAWS = 9
"""A partition that leaves a client with too few examples is drawn anew up to so often; then examples are moved."""
WHOLE = {"clients": 20, "labels_per_client": 2, "shards_per_client": 2, "min_examples": 2, "seed": 0}
"""Settings that are whole numbers, and one that would work; they start at 1, the seed at 0."""


def federate(
    source: Source,
    *,
    partition: str = "dirichlet",
    clients: int | None = None,
    alpha: float = 0.1,
    labels_per_client: int = 2,
    shards_per_client: int = 2,
    min_examples: int = 2,
    validation: float = 0.1,
    new_clients: float = 0.0,
    protocol: Literal["official", "pooled"] = "official",
    seed: int = 0,
) -> FederatedData:
    """Divide a source among clients.

    Under the protocol ``official`` the training split is partitioned, and the official test split is divided so
    that each client's test labels follow its training labels: all tests together are the official test (a small
    client's may be empty). Where there is none, a fifth of each client's examples is its test. Natural clients keep
    their own test examples; those who are in the official test only never train, and those who are in the training
    split only give a fifth of it as their test. Under ``pooled``, training and test splits are merged before the
    partition, and a quarter of each client's examples is its test. Characters are cut in time, time series (whose
    windows may overlap) in time within each label, everything else at random within labels.

    Args:
        source: the examples.
        partition: iid, dirichlet, extended-dirichlet, pathological, shards, quantity, domain or natural.
        clients: number of clients; by default 20, or all natural ones.
        alpha: concentration (dirichlet, extended-dirichlet, quantity).
        labels_per_client: for pathological and extended-dirichlet.
        shards_per_client: for shards.
        min_examples: fewest training examples of a client; natural clients that cannot have them are left out.
        validation: share of each client's training examples kept for validation, as far as `min_examples` allows.
        new_clients: share of clients that never train; above 0, at least one of them.
        protocol: official or pooled.
        seed: of the partition; the same seed gives the same bits.

    Raises:
        SettingError: a setting is out of range, or the partition cannot be met; the sentence names the constraint.
    """
    recipe = _checked({k: v for k, v in locals().items() if k != "source"})
    share = POOLED_TEST if protocol == "pooled" else OWN_TEST
    official = source.test if source.test is not None and protocol == "official" else None
    pool = np.arange(len(source.y)) if official is None else np.flatnonzero(~official)
    rng = stream(seed, "partition")
    if partition == "natural":
        needed = min_examples if official is not None else int(np.ceil(min_examples / (1 - share)))
        train, test, unseen, extra = _natural(source, pool, official, clients, needed, rng)
    else:
        needed = min_examples if official is not None else int(np.ceil(min_examples / (1 - share)))
        options = Options(alpha, labels_per_client, shards_per_client, needed)
        train, test, extra = _divided(source, pool, official, partition, clients, options, rng)
        unseen = np.zeros(0, dtype=np.int64)
    cut, strangers = stream(seed, "test"), set(unseen.tolist())
    for k in range(len(train)):
        if (official is None or partition == "natural") and not len(test[k]) and k not in strangers:
            train[k], test[k] = _cut(source, train[k], share, min_examples, cut, some=1)
    kept = stream(seed, "validation")
    halves = [_cut(source, rows, validation, min_examples, kept) for rows in train]
    splits = {
        "train": Rows.of([a for a, _ in halves]),
        "validation": Rows.of([b for _, b in halves]),
        "test": Rows.of(test),
    }
    able = np.setdiff1d(np.arange(len(train)), unseen)
    if new_clients and len(able) < 2:
        raise SettingError(f"new_clients = {new_clients:g} leaves none of {len(able)} client to train: use 0")
    held_out = min(max(int(new_clients * len(able) + 0.5), 1), len(able) - 1) if new_clients else 0
    more = stream(seed, "new clients").choice(able, held_out, replace=False)
    unseen = np.sort(np.concatenate([unseen, more])).astype(np.int64)
    if partition != "natural":  # there, None is everybody, those who are only tested included
        recipe["clients"] = len(train)
    note = manifest(source, splits, unseen, {**recipe, **extra})
    return FederatedData(
        source, splits["train"], splits["validation"], splits["test"], protocol=protocol, manifest=note, unseen=unseen
    )


def _checked(recipe: dict[str, Any]) -> dict[str, Any]:
    """The settings as plain numbers and words; `SettingError` names one that is out of range whatever the data."""
    plain = dict(recipe)
    for name, example in WHOLE.items():
        value, low = recipe[name], int(name != "seed")
        if name == "clients" and value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, Integral) or value < low:
            raise SettingError(f"{name} = {value!r} is not a whole number of {low} or more: use one, such as {example}")
        plain[name] = int(value)
    for name in ("alpha", "validation", "new_clients"):
        value = recipe[name]
        number = isinstance(value, Real) and not isinstance(value, bool)
        if name == "alpha" and not (number and 0 < value < np.inf):
            raise SettingError(f"alpha = {value!r} is not a Dirichlet concentration: use a number above 0, such as 0.1")
        if name != "alpha" and not (number and 0 <= value < 1):
            raise SettingError(f"{name} = {value!r} is not a share: use 0 up to, but not, 1")
        plain[name] = float(value)
    if recipe["protocol"] not in ("official", "pooled"):
        raise SettingError(f"protocol = {recipe['protocol']!r} is not known: use official or pooled")
    return plain


def _pool(source: Source, rows: Array) -> Pool:
    y = source.y[rows] if source.y.ndim == 1 else np.zeros(len(rows), dtype=np.int64)
    classes = source.classes if source.y.ndim == 1 else 1
    return Pool(y, classes, None if source.domain is None else source.domain[rows])


def _divided(
    source: Source,
    pool: Array,
    official: Array | None,
    partition: str,
    clients: int | None,
    options: Options,
    rng: np.random.Generator,
) -> tuple[Parts, Parts, dict[str, Any]]:
    """(training rows, test rows, what to add to the recipe)."""
    if partition not in PARTITIONERS:
        known = ", ".join([*PARTITIONERS, "natural"])
        raise SettingError(f"partition = {partition!r} is not known: use {known}")
    if source.y.ndim > 1 and partition in LABEL_SKEW:
        raise SettingError(
            f"partition = {partition!r} divides by label, and {source.name} has no single label per example: use "
            f"{'iid or quantity' if source.owner is None else 'natural, iid or quantity'}"
        )
    clients = WHOLE["clients"] if clients is None else clients
    if clients > len(pool):
        raise SettingError(
            f"clients = {clients} is more than the {len(pool)} training examples: use at most {len(pool)}"
        )
    if clients * options.min_examples > len(pool):
        raise SettingError(
            f"clients = {clients} with {options.min_examples} or more examples each need more than the {len(pool)} "
            f"there are: use at most {len(pool) // options.min_examples} clients or a lower min_examples"
        )
    here = _pool(source, pool)
    redrawn = 0
    division = PARTITIONERS[partition](here, clients, rng, options)
    while redrawn < REDRAWS and np.bincount(division.owner, minlength=clients).min() < options.min_examples:
        division = PARTITIONERS[partition](here, clients, rng, options)
        redrawn += 1
    owner, moved = repaired(division, clients, options.min_examples, rng)
    train, drawn = _parts(pool, owner, clients), {"redrawn": redrawn, "moved": moved}
    if official is None:
        return train, [pool[:0]] * clients, drawn
    tests = np.flatnonzero(official)
    return train, _parts(tests, spread(here, owner, clients, _pool(source, tests), rng), clients), drawn


def _natural(
    source: Source, pool: Array, official: Array | None, clients: int | None, least: int, rng: np.random.Generator
) -> tuple[Parts, Parts, Array, dict[str, Any]]:
    """(training rows, test rows, clients that are in the official test only, what to add to the recipe)."""
    if source.owner is None:
        raise SettingError(f"partition = 'natural' needs data with owners, and {source.name} has none: use dirichlet")
    names, counts = np.unique(source.owner[pool], return_counts=True)
    able = names[counts >= least]
    if not len(able):
        raise SettingError(
            f"min_examples leaves no natural client, since it asks for {least} examples of each and the largest has "
            f"{counts.max()}: use a lower one"
        )
    if clients is not None and clients > len(able):
        raise SettingError(
            f"clients = {clients} is more than the {len(able)} natural clients with {least} or more training examples: "
            f"use at most {len(able)}"
        )
    if clients is not None and clients < len(able):
        able = np.sort(rng.choice(able, clients, replace=False))
    strangers = names[:0]
    if official is not None and clients is None:
        strangers = np.setdiff1d(np.unique(source.owner[official]), names)
    everyone = np.concatenate([able, strangers])
    place = {int(name): k for k, name in enumerate(everyone)}
    owner = np.array([place.get(int(o), -1) for o in source.owner])
    train = _parts(pool, owner[pool], len(everyone))
    tests = pool[:0] if official is None else np.flatnonzero(official)
    unseen = np.arange(len(able), len(everyone))
    return train, _parts(tests, owner[tests], len(everyone)), unseen, {"redrawn": 0, "moved": 0}


def _parts(rows: Array, owner: Array, clients: int) -> Parts:
    """Row numbers of each client, in ascending order."""
    order = np.argsort(owner, kind="stable")
    cuts = np.searchsorted(owner[order], np.arange(clients + 1))
    return [rows[order[a:b]] for a, b in pairwise(cuts)]


def _cut(
    source: Source, rows: Array, share: float, least: int, rng: np.random.Generator, some: int = 0
) -> tuple[Array, Array]:
    """(what stays, what is taken out): the whole number nearest to a share, `some` or more, but `least` stay.

    Characters give the end of their text. Else the share is spread evenly over labels, at random within each; for
    series, whose neighbouring windows may overlap, it is the end of each label.
    """
    count = min(max(int(share * len(rows) + 0.5), some), len(rows) - least)
    if count <= 0:
        return rows, rows[:0]
    if source.y.ndim > 1:
        return rows[:-count], rows[-count:]
    y = source.y[rows]
    order = np.lexsort((np.arange(len(rows)) if source.kind == "series" else rng.random(len(rows)), y))
    places = (np.arange(count) * len(rows) + rng.integers(len(rows))) // count
    if source.kind == "series":
        labels, wanted = np.unique(y[order[places]], return_counts=True)
        places = np.concatenate(
            [np.arange(end - n, end) for end, n in zip(np.searchsorted(y[order], labels, "right"), wanted, strict=True)]
        )
    out = np.zeros(len(rows), dtype=bool)
    out[order[places]] = True
    return rows[~out], rows[out]
