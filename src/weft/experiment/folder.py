"""The run folder: what a run leaves behind, written so that a kill at any moment leaves it readable."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet
import yaml

from weft.core.errors import SettingError

SCHEMA = pa.schema(
    [
        ("round", pa.int32()),
        ("split", pa.string()),
        ("view", pa.string()),
        ("group", pa.string()),
        ("client", pa.int32()),
        ("metric", pa.string()),
        ("value", pa.float64()),
    ]
)
BLOCK = 2**14
"""Rows of the metrics table that are in memory as rows at once, about."""


class Part(NamedTuple):
    """Rows of the metrics table that differ in client and value only."""

    number: int  # the round
    split: str
    view: str
    group: str
    metric: str
    values: np.ndarray[Any, np.dtype[np.float64]]
    clients: np.ndarray[Any, np.dtype[np.int32]] | None  # None: one value over clients

    def table(self) -> pa.Table:
        """As rows."""
        n = len(self.values)
        words = [pa.repeat(word, n) for word in (self.split, self.view, self.group, self.metric)]
        number, everybody = pa.repeat(pa.scalar(self.number, pa.int32()), n), pa.repeat(pa.scalar(-1, pa.int32()), n)
        clients = everybody if self.clients is None else pa.array(self.clients)
        return pa.Table.from_arrays([number, *words[:3], clients, words[3], pa.array(self.values)], schema=SCHEMA)


@dataclass
class Rows:
    """Rows of the metrics table, gathered part by part."""

    parts: list[Part] = field(default_factory=list)

    def add(
        self, number: int, split: str, view: str, group: str, values: Mapping[str, Any], clients: Any = None
    ) -> None:
        """Add metric -> value, over clients, or metric -> values with `clients` an array of the same length."""
        own = None if clients is None else np.asarray(clients, dtype=np.int32)
        for metric, value in values.items():
            found = np.atleast_1d(np.asarray(value, dtype=np.float64))
            self.parts.append(Part(number, split, view, group, metric, found, own))

    def tables(self) -> Iterator[pa.Table]:
        """All rows, in tables of some ten thousand: a row takes 70 bytes there, where a part has 8."""
        tables, size = [], 0
        for part in self.parts:
            tables.append(part.table())
            size += len(part.values)
            if size >= BLOCK:
                yield pa.concat_tables(tables)
                tables, size = [], 0
        if tables:
            yield pa.concat_tables(tables)


class RunFolder:
    """A folder on disk that holds one run."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @staticmethod
    def start(path: Path, settings: Mapping[str, Any], *, resume: bool) -> RunFolder:
        """Take a folder for a run.

        Raises:
            SettingError: it holds another run, or one with other settings, or it cannot be written.
        """
        folder = RunFolder(path)
        mark = path / "settings.yaml"
        if mark.exists():
            if not resume:
                raise SettingError(
                    f"out = {path} already holds a run: use --resume to go on with it, or another folder"
                )
            try:
                old = yaml.safe_load(mark.read_text())
            except (yaml.YAMLError, UnicodeDecodeError):
                raise SettingError(f"{mark} is damaged: restore it, or use another folder") from None
            changed = _differences(old, json.loads(json.dumps(settings)))
            if changed:
                raise SettingError(
                    f"cannot resume {path} with changed settings ({', '.join(changed)}): use the settings in {mark}, "
                    "or another folder"
                )
            return folder
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise SettingError(f"out = {path} is not an empty folder and holds no run: use another folder")
        try:
            (path / "metrics.parquet").mkdir(parents=True)
            folder.write("settings.yaml", yaml.safe_dump(json.loads(json.dumps(settings)), sort_keys=False))
        except OSError as error:
            raise SettingError(f"out = {path} cannot be written ({error.strerror}): use a folder that can") from None
        return folder

    def write(self, name: str, text: str) -> None:
        """Write a text file so that either the old or the new one is there, whole."""
        temporary = self.path / f".{name}.part"
        temporary.write_text(text)
        os.replace(temporary, self.path / name)

    def write_metrics(self, number: int, tables: Iterable[pa.Table]) -> None:
        """Write one round's part of the metrics table."""
        home = self.path / "metrics.parquet"
        temporary = home / f".round-{number:06d}.part"
        with pyarrow.parquet.ParquetWriter(temporary, SCHEMA, compression="zstd") as file:
            for table in tables:
                file.write_table(table)
        os.replace(temporary, home / f"round-{number:06d}.parquet")

    def forget_metrics_after(self, number: int) -> None:
        """Drop parts that are newer than a checkpoint."""
        for part in (self.path / "metrics.parquet").glob("round-*.parquet"):
            if int(part.stem.removeprefix("round-")) > number:
                part.unlink()

    def metrics(self, over_clients: bool = False) -> pa.Table:
        """The metrics table so far, or those of its rows that are over clients."""
        parts = sorted((self.path / "metrics.parquet").glob("round-*.parquet"))
        some = pc.field("client") == -1 if over_clients else None
        tables = [pyarrow.parquet.read_table(p, filters=some) for p in parts]
        return pa.concat_tables(tables) if parts else SCHEMA.empty_table()


_ACTORS = ("actors", "actor_cpus", "actor_gpus", "ray_address")
PLACE = frozenset(("executor", "chunk", "workers", "compile", "device", "checkpoint_every", *_ACTORS))
"""Settings that say where and how clients run, not what is computed: a run may go on with others."""


def _differences(old: Any, new: Any, where: str = "") -> list[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        names = [k for k in {**old, **new} if k not in PLACE]
        return [d for k in names for d in _differences(old.get(k), new.get(k), f"{where}.{k}" if where else k)]
    return [] if old == new else [f"{where}: {old!r} there, {new!r} now"]
