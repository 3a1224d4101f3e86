"""The run folder: what a run leaves behind, written so that a kill at any moment leaves it readable."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
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


@dataclass
class Rows:
    """Rows of the metrics table in long format, gathered column by column."""

    parts: list[pa.Table] = field(default_factory=list)

    def add(self, number: int, split: str, view: str, group: str, values: Mapping[str, Any], client: Any = -1) -> None:
        """Add metric -> value, or metric -> values with `client` an array of the same length (-1: over clients)."""
        for metric, value in values.items():
            v = np.atleast_1d(np.asarray(value, dtype=np.float64))
            n = len(v)
            owner = np.broadcast_to(np.asarray(client, dtype=np.int32), n)
            fixed = [pa.array([x] * n) for x in (split, view, group)]
            columns = [pa.array([number] * n, pa.int32()), *fixed, pa.array(owner), pa.array([metric] * n), pa.array(v)]
            self.parts.append(pa.Table.from_arrays(columns, schema=SCHEMA))

    def table(self) -> pa.Table:
        """All rows."""
        return pa.concat_tables(self.parts).combine_chunks() if self.parts else SCHEMA.empty_table()


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

    def write_metrics(self, number: int, rows: pa.Table) -> None:
        """Write one round's part of the metrics table."""
        home = self.path / "metrics.parquet"
        temporary = home / f".round-{number:06d}.part"
        pyarrow.parquet.write_table(rows, temporary, compression="zstd")
        os.replace(temporary, home / f"round-{number:06d}.parquet")

    def forget_metrics_after(self, number: int) -> None:
        """Drop parts that are newer than a checkpoint."""
        for part in (self.path / "metrics.parquet").glob("round-*.parquet"):
            if int(part.stem.removeprefix("round-")) > number:
                part.unlink()

    def metrics(self) -> pa.Table:
        """The metrics table so far."""
        parts = sorted((self.path / "metrics.parquet").glob("round-*.parquet"))
        return pa.concat_tables([pyarrow.parquet.read_table(p) for p in parts]) if parts else SCHEMA.empty_table()


PLACE = frozenset(
    ("executor", "chunk", "workers", "device", "checkpoint_every", "actors", "actor_cpus", "actor_gpus", "ray_address")
)
"""Settings that say where and how clients run, not what is computed: a run may go on with others."""


def _differences(old: Any, new: Any, where: str = "") -> list[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        names = [k for k in {**old, **new} if k not in PLACE]
        return [d for k in names for d in _differences(old.get(k), new.get(k), f"{where}.{k}" if where else k)]
    return [] if old == new else [f"{where}: {old!r} there, {new!r} now"]
