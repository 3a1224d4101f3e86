"""Partitioners: how training examples are divided among clients.

Each is a function ``(pool, clients, rng, options) -> Division``: the client of every example of the pool, and what
each client may hold. `repaired` then sees to the smallest clients within that, and `spread` divides a test pool so
that every client's test labels follow its training labels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from weft.core.errors import SettingError

Array = np.ndarray[Any, np.dtype[Any]]


class Pool(NamedTuple):
    """The examples to divide."""

    y: Array  # int64 [n]: labels
    classes: int
    domain: Array | None  # int64 [n]


class Division(NamedTuple):
    """What a partitioner says. Without `kind` and `may`, any client may hold any example."""

    owner: Array  # int64 [n]: the client of each example
    kind: Array | None = None  # int64 [n]: label or domain of each example, as far as it limits who may hold it
    may: Array | None = None  # bool [clients, kinds]


@dataclass(frozen=True)
class Options:
    """What partitioners can be told."""

    alpha: float = 0.1
    labels_per_client: int = 2
    shards_per_client: int = 2
    min_examples: int = 2


Partitioner = Callable[[Pool, int, np.random.Generator, Options], Division]


def iid(pool: Pool, clients: int, rng: np.random.Generator, options: Options) -> Division:
    """At random, in equal parts."""
    return Division(_dealt(len(pool.y), np.ones(clients), rng)[rng.permutation(len(pool.y))])


def dirichlet(pool: Pool, clients: int, rng: np.random.Generator, options: Options) -> Division:
    """Each label is divided by its own Dirichlet(alpha) draw over clients (Yurochkin et al. 2019; Li et al. 2022)."""
    owner = np.empty(len(pool.y), dtype=np.int64)
    for label in np.unique(pool.y):
        rows = rng.permutation(np.flatnonzero(pool.y == label))
        owner[rows] = _dealt(len(rows), _dirichlet(rng, options.alpha, clients), rng)
    return Division(owner)


def extended_dirichlet(pool: Pool, clients: int, rng: np.random.Generator, options: Options) -> Division:
    """Each client gets `labels_per_client` labels; Dirichlet(alpha) divides each among its clients (Li, Lyu 2023)."""
    has = _labels(pool, clients, rng, options)
    owner = np.empty(len(pool.y), dtype=np.int64)
    for label in np.unique(pool.y):
        rows = rng.permutation(np.flatnonzero(pool.y == label))
        theirs = np.flatnonzero(has[:, label])
        owner[rows] = theirs[_dealt(len(rows), _dirichlet(rng, options.alpha, len(theirs)), rng)]
    return Division(owner, pool.y, has)


def pathological(pool: Pool, clients: int, rng: np.random.Generator, options: Options) -> Division:
    """Each client gets `labels_per_client` labels; each label is divided equally among those that have it."""
    has = _labels(pool, clients, rng, options)
    owner = np.empty(len(pool.y), dtype=np.int64)
    for label in np.unique(pool.y):
        rows = rng.permutation(np.flatnonzero(pool.y == label))
        theirs = np.flatnonzero(has[:, label])
        owner[rows] = theirs[_dealt(len(rows), np.ones(len(theirs)), rng)]
    return Division(owner, pool.y, has)


def shards(pool: Pool, clients: int, rng: np.random.Generator, options: Options) -> Division:
    """Sorted by label and cut into equal shards, `shards_per_client` for each client (McMahan et al. 2017)."""
    count = clients * options.shards_per_client
    if count > len(pool.y):
        raise SettingError(
            f"shards_per_client = {options.shards_per_client} cuts {len(pool.y)} examples into {count} shards: "
            f"use 1 to {len(pool.y) // clients}"
        )
    order = np.lexsort((rng.random(len(pool.y)), pool.y))
    owner = np.empty(len(pool.y), dtype=np.int64)
    shard = _dealt(len(pool.y), np.ones(count), rng)
    owner[order] = (rng.permutation(count) // options.shards_per_client)[shard]
    return Division(owner)


def quantity(pool: Pool, clients: int, rng: np.random.Generator, options: Options) -> Division:
    """At random, in parts whose sizes are a Dirichlet(alpha) draw."""
    part = _dealt(len(pool.y), _dirichlet(rng, options.alpha, clients), rng)
    return Division(part[rng.permutation(len(pool.y))])


def domain(pool: Pool, clients: int, rng: np.random.Generator, options: Options) -> Division:
    """Feature shift: clients are spread over the domains, and each has examples of one."""
    if pool.domain is None:
        raise SettingError("partition = 'domain' needs data with domains, such as digits, or made by --domain")
    domains, kind = np.unique(pool.domain, return_inverse=True)
    if clients < len(domains):
        raise SettingError(f"clients = {clients} is fewer than the {len(domains)} domains: use at least {len(domains)}")
    owner = np.empty(len(pool.y), dtype=np.int64)
    may = np.arange(clients)[:, None] % len(domains) == np.arange(len(domains))
    for i in range(len(domains)):
        rows = rng.permutation(np.flatnonzero(kind == i))
        theirs = np.flatnonzero(may[:, i])
        owner[rows] = theirs[_dealt(len(rows), np.ones(len(theirs)), rng)]
    return Division(owner, kind, may)


PARTITIONERS: dict[str, Partitioner] = {
    "iid": iid,
    "dirichlet": dirichlet,
    "extended-dirichlet": extended_dirichlet,
    "pathological": pathological,
    "shards": shards,
    "quantity": quantity,
    "domain": domain,
}
"""By name; ``natural`` is not among them, since there the owners are given."""


LABEL_SKEW = ("dirichlet", "extended-dirichlet", "pathological", "shards")
"""Those that need one label per example."""


def repaired(division: Division, clients: int, least: int, rng: np.random.Generator) -> tuple[Array, int]:
    """(owners with at least `least` examples each, number of examples moved).

    A client that has too few takes, of what it may hold, from the largest that has some; givers keep `least`.
    """
    owner = division.owner.copy()
    kind = np.zeros_like(owner) if division.kind is None else division.kind
    may = np.ones((clients, 1), dtype=bool) if division.may is None else division.may
    kinds = may.shape[1]
    counts = np.bincount(owner * kinds + kind, minlength=clients * kinds).reshape(clients, kinds)
    sizes = counts.sum(1)
    stock: dict[tuple[int, int], list[int]] = {}
    moved = 0
    for k in np.flatnonzero(sizes < least):
        spare = counts[:, may[k]].sum(1)
        while sizes[k] < least:
            giver = int(np.argmax(np.where((sizes > least) & (spare > 0), sizes, -1)))
            if sizes[giver] <= least or not spare[giver]:
                raise SettingError(
                    f"min_examples asks for {least} examples of client {k} of {clients}, and others have none to "
                    "spare of the labels or the domain that it may hold: use fewer clients or a lower minimum"
                )
            what = int(np.argmax(counts[giver] * may[k]))
            if (giver, what) not in stock:
                stock[giver, what] = rng.permutation(np.flatnonzero((owner == giver) & (kind == what))).tolist()
            owner[stock[giver, what].pop()] = k
            counts[giver, what] -= 1
            counts[k, what] += 1
            spare[giver] -= 1
            sizes[giver] -= 1
            sizes[k] += 1
            moved += 1
    return owner, moved


def spread(train: Pool, owner: Array, clients: int, test: Pool, rng: np.random.Generator) -> Array:
    """Divide a test pool so that each label goes to clients in proportion to their training examples of it.

    With domains, the proportions are taken within label and domain. Every example goes to exactly one client.
    """
    kind = [(p.y if p.domain is None else p.y + p.classes * p.domain) for p in (train, test)]
    out = np.empty(len(test.y), dtype=np.int64)
    for k in np.unique(kind[1]):
        rows = rng.permutation(np.flatnonzero(kind[1] == k))
        share = np.bincount(owner[(kind[0] == k) & (owner >= 0)], minlength=clients).astype(float)
        share = share if share.sum() else np.ones(clients)
        out[rows] = _dealt(len(rows), share, rng)
    return out


def _dealt(n: int, share: Array, rng: np.random.Generator) -> Array:
    """The part that each of `n` places falls into, ascending; sizes are within one of n * share / sum(share).

    The cuts have one random offset (systematic sampling), so that each size is n * share / sum(share) on average.
    Cuts without it give the first and last parts nothing whenever shares are small, for every label alike.
    """
    ends = np.cumsum(share)
    ends = np.minimum(np.floor(ends / ends[-1] * n + rng.random()), n)
    part: Array = np.searchsorted(ends, np.arange(n), side="right")
    return part


def _dirichlet(rng: np.random.Generator, alpha: float, parts: int) -> Array:
    """A Dirichlet draw up to its sum, through gammas in log space, so that tiny concentrations do not become 0/0.

    If G ~ Gamma(alpha + 1) and U ~ Uniform(0, 1), then G * U^(1 / alpha) ~ Gamma(alpha).
    """
    uniform = np.log1p(-rng.random(parts))
    with np.errstate(over="ignore"):  # a share that is nothing beside the largest
        logs = np.log(rng.gamma(alpha + 1, size=parts)) + (uniform - uniform.max()) / alpha
    shares: Array = np.exp(logs - logs.max())
    return shares


def _labels(pool: Pool, clients: int, rng: np.random.Generator, options: Options) -> Array:
    """Bool [clients, classes]: `labels_per_client` labels for each, every label with somebody, as evenly as can be."""
    k, present = options.labels_per_client, np.unique(pool.y)
    if k > len(present):
        raise SettingError(
            f"labels_per_client = {k} does not fit data with {len(present)} labels: use 1 to {len(present)}"
        )
    if clients * k < len(present):
        raise SettingError(
            f"labels_per_client = {k} for {clients} clients leaves labels without an owner: use at least "
            f"{-(-len(present) // clients)}"
        )
    has = np.zeros((clients, pool.classes), dtype=bool)
    left = np.full(len(present), clients * k // len(present))
    left[rng.permutation(len(present))[: clients * k % len(present)]] += 1
    for client in range(clients):  # labels with most places left first: the last client can then always be served
        chosen = np.lexsort((rng.random(len(present)), -left))[:k]
        has[client, present[chosen]] = True
        left[chosen] -= 1
    return has
