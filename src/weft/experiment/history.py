"""The history of a run: its figures over clients, round by round, in a few bytes each."""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from weft.experiment.folder import SCHEMA, Part


class Series(NamedTuple):
    """One figure over rounds."""

    rounds: array[int]  # ascending
    values: array[float]


class History:
    """All figures over clients so far, 12 bytes each.

    A table for each round would take kilobytes. Worse, each would lie between the large blocks that the next rounds ask
    for, and keep the allocator from using them again: in 500 rounds of an MLP, 300 MB.
    """

    def __init__(self) -> None:
        self._found: dict[tuple[str, str, str], dict[str, Series]] = {}

    def add(self, parts: Iterable[Part]) -> None:
        """Take those of these that are over clients; rounds must come in their order."""
        for part in parts:
            if part.clients is None:
                self._put(part.number, part.split, part.view, part.group, part.metric, float(part.values[0]))

    def read(self, table: pa.Table) -> None:
        """Take rows of the metrics table that are over clients."""
        names = ("round", "split", "view", "group", "metric", "value")
        for row in zip(*(table[name].to_pylist() for name in names), strict=True):
            self._put(*row)

    def _put(self, number: int, split: str, view: str, group: str, metric: str, value: float) -> None:
        found = self._found.setdefault((split, view, group), {})
        rounds, values = found.setdefault(metric, Series(array("i"), array("d")))
        rounds.append(number)
        values.append(value)

    def at(self, number: int, split: str, view: str, group: str) -> dict[str, float]:
        """Metric -> figure after a round; empty if that was not judged."""
        found = {}
        for metric, (rounds, values) in self._found.get((split, view, group), {}).items():
            place = bisect_left(rounds, number)
            if place < len(rounds) and rounds[place] == number:
                found[metric] = values[place]
        return found

    def of(self, split: str, view: str, group: str, metric: str) -> Series:
        """One figure over all rounds in which there was one."""
        return self._found.get((split, view, group), {}).get(metric, Series(array("i"), array("d")))

    def splits(self, view: str, group: str) -> set[str]:
        """What was asked of a group."""
        return {key[0] for key in self._found if key[1:] == (view, group)}

    def table(self) -> pa.Table:
        """All of it in long format, by rounds."""
        if not self._found:
            return SCHEMA.empty_table()
        every = [(*key, metric, series) for key, found in self._found.items() for metric, series in found.items()]
        rounds = np.concatenate([np.array(series.rounds) for *_, series in every])
        order, lengths = np.argsort(rounds, kind="stable"), [len(series.rounds) for *_, series in every]
        which = pa.array(np.repeat(np.arange(len(every)), lengths)[order])
        split, view, group, metric, _ = zip(*every, strict=True)
        words = [pa.array(column).take(which) for column in (split, view, group, metric)]
        values = np.concatenate([np.array(series.values) for *_, series in every])[order]
        everybody = pa.array(np.full(len(rounds), -1, np.int32))
        columns = [pa.array(rounds[order], pa.int32()), *words[:3], everybody, words[3], pa.array(values)]
        return pa.Table.from_arrays(columns, schema=SCHEMA)
