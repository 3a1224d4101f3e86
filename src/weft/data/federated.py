"""FederatedData: who has which examples, as row numbers into one source."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from weft.core.errors import SettingError
from weft.data.source import Source

Indices = np.ndarray[Any, np.dtype[np.int64]]


class Rows(NamedTuple):
    """Ragged index sets without copies: ``rows[offset[k]:offset[k + 1]]`` belong to client k."""

    rows: Indices  # int64 [total]
    offset: Indices  # int64 [clients + 1]

    @staticmethod
    def of(parts: Sequence[Indices]) -> Rows:
        """From one array of row numbers per client."""
        counts = np.array([len(p) for p in parts], dtype=np.int64)
        flat = np.concatenate(parts) if len(parts) else np.zeros(0)
        return Rows(flat.astype(np.int64), np.concatenate([[0], np.cumsum(counts)]).astype(np.int64))

    @property
    def clients(self) -> int:
        """Number of clients."""
        return len(self.offset) - 1

    @property
    def counts(self) -> Indices:
        """Examples of each client, int64 [clients]."""
        return np.diff(self.offset)

    def client(self, k: int) -> Indices:
        """Row numbers of client `k`."""
        return self.rows[self.offset[k] : self.offset[k + 1]]

    def each(self) -> Iterator[Indices]:
        """Row numbers of every client in turn."""
        return (self.client(k) for k in range(self.clients))


class Stream(NamedTuple):
    """Test examples that every client is asked, in order; see `weft.data.streams`."""

    rows: Rows
    foreign: np.ndarray[Any, np.dtype[np.bool_]]  # [total]: whether each is of another client


SPLITS = ("train", "validation", "test")


@dataclass(frozen=True, eq=False)
class FederatedData:
    """A source divided among clients.

    When the value is made it is proven that no example is in two places, that every client outside `unseen` has
    something to train on, and, under the protocol ``official``, that the official test split is in no client's
    training or validation rows.
    """

    source: Source
    train: Rows
    validation: Rows
    test: Rows
    protocol: str  # "official" or "pooled"
    manifest: dict[str, Any]  # recipe, histograms and hashes; see `weft.data.manifest`
    unseen: Indices = field(default_factory=lambda: np.zeros(0, dtype=np.int64))  # clients that never train
    streams: Mapping[str, Stream] = field(default_factory=dict)  # further tests, made of test examples

    def __post_init__(self) -> None:
        prove_disjoint(self.splits(), len(self.source.y))
        official = self.source.test if self.protocol == "official" else None
        for name in ("train", "validation"):
            rows = getattr(self, name)
            if official is not None and len(leaked := np.flatnonzero(official[rows.rows])):
                client = np.searchsorted(rows.offset, leaked[0], side="right") - 1
                raise SettingError(
                    f"example {rows.rows[leaked[0]]} of the official test split is in {name} of client {client}: under "
                    "protocol = 'official' it may only be tested on; use pooled to merge the splits"
                )
        if len(self.unseen) and not 0 <= self.unseen.min() <= self.unseen.max() < self.clients():
            raise SettingError(f"unseen clients {self.unseen.tolist()} are not all among the {self.clients()} clients")
        for name, stream in self.streams.items():
            if stream.rows.clients != self.clients() or len(stream.foreign) != len(stream.rows.rows):
                raise SettingError(f"stream {name!r} is not for {self.clients()} clients: make it of this federation")
            if len(stray := np.setdiff1d(stream.rows.rows, self.test.rows)):
                raise SettingError(f"stream {name!r} holds example {stray[0]}, which is no test example: leave it out")
        if len(empty := np.setdiff1d(np.flatnonzero(self.train.counts == 0), self.unseen)):
            raise SettingError(f"client {empty[0]} has no training example: give it some, or count it among the unseen")

    def clients(self) -> int:
        """Number of clients, those that never train included."""
        return self.train.clients

    def splits(self) -> dict[str, Rows]:
        """Split name -> rows."""
        return {name: getattr(self, name) for name in SPLITS}


def prove_disjoint(splits: dict[str, Rows], examples: int) -> None:
    """Raise `SettingError` naming the clients and splits that share an example, or what is malformed."""
    for name, (rows, offset) in splits.items():
        whole = all(a.ndim == 1 and a.dtype == np.int64 for a in (rows, offset)) and len(offset) > 1
        if not whole or offset[0] != 0 or offset[-1] != len(rows) or (np.diff(offset) < 0).any():
            raise SettingError(f"the {name} rows of a partition are malformed: offsets must rise from 0 to {len(rows)}")
    if len(set(counts := [r.clients for r in splits.values()])) > 1:
        raise SettingError(f"the splits of a partition are for {counts} clients: make them for the same clients")
    flat = np.concatenate([r.rows for r in splits.values()])
    if len(outside := flat[(flat < 0) | (flat >= examples)]):
        raise SettingError(f"a partition names example {outside[0]} of {examples}: it belongs to other data")
    order = np.argsort(flat, kind="stable")
    twice = np.flatnonzero(np.diff(flat[order]) == 0)
    if not len(twice):
        return
    names = np.repeat(list(splits), [len(r.rows) for r in splits.values()])
    owners = np.concatenate([np.repeat(np.arange(r.clients), r.counts) for r in splits.values()])
    a, b = order[twice[0]], order[twice[0] + 1]
    raise SettingError(
        f"example {int(flat[a])} is in two places: {names[a]} of client {owners[a]} and {names[b]} of client "
        f"{owners[b]}; a partition must give each example to one client and one split"
    )
