"""Manifests: a partition as a file that can be verified.

What identifies a partition is small and goes with the data. What there is of each client, its counts and its histogram
of labels, follows from data and indices and stands in the file only.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from weft.core.errors import SettingError
from weft.data.federated import SPLITS, FederatedData, Rows
from weft.data.source import Source
from weft.version import __version__

Array = np.ndarray[Any, np.dtype[Any]]


def manifest(source: Source, splits: Mapping[str, Rows], unseen: Array, recipe: Mapping[str, Any]) -> dict[str, Any]:
    """What identifies a partition: recipe, versions and hashes."""
    return {
        "source": source.name,
        "recipe": dict(recipe),
        "weft": __version__,
        "numpy": np.__version__,
        "clients": splits["train"].clients,
        "unseen": unseen.tolist(),
        "hash": hash_of(splits, unseen),
        "left_out": len(source.y) - sum(len(rows.rows) for rows in splits.values()),
        "source_hash": source_hash(source),
    }


def figures(source: Source, splits: Mapping[str, Rows]) -> dict[str, dict[str, Array]]:
    """What there is of each client in each split: counts [clients], and the histogram of labels [clients][labels]."""
    return {
        "counts": {name: rows.counts for name, rows in splits.items()},
        "histogram": {name: histogram(source, rows) for name, rows in splits.items()},
    }


def histogram(source: Source, rows: Rows) -> Array:
    """int64 [clients, labels]; for characters [clients, 1], the number of windows."""
    if source.y.ndim > 1:
        return rows.counts[:, None]
    owner = np.repeat(np.arange(rows.clients), rows.counts)
    flat = np.bincount(owner * source.classes + source.y[rows.rows], minlength=rows.clients * source.classes)
    return flat.reshape(rows.clients, source.classes)


def text(data: FederatedData) -> str:
    """The manifest with its figures as JSON, a line for each entry."""
    whole = {**data.manifest, **figures(data.source, data.splits())}
    return "{\n" + ",\n".join(f" {json.dumps(name)}: {_json(value)}" for name, value in whole.items()) + "\n}\n"


def _json(value: Any) -> str:
    """An array goes in blocks: as lists it is ten times as large as its text."""
    if isinstance(value, np.ndarray):
        blocks = (value[start : start + 4096].tolist() for start in range(0, len(value), 4096))
        return "[" + ", ".join(json.dumps(block)[1:-1] for block in blocks) + "]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(key)}: {_json(v)}" for key, v in value.items()) + "}"
    return json.dumps(value)


def hash_of(splits: Mapping[str, Rows], unseen: Array) -> str:
    """SHA-256 of the indices of all splits and of the clients that never train, each after its length."""
    digest = hashlib.sha256()
    for part in (*(array for name in SPLITS for array in splits[name]), unseen):
        digest.update(f"{len(part)}:".encode())
        digest.update(np.ascontiguousarray(part, dtype="<i8").data)
    return digest.hexdigest()


def source_hash(source: Source) -> str:
    """SHA-256 of the examples and labels."""
    digest = hashlib.sha256()
    for part in (source.x, source.y):
        digest.update(f"{part.dtype}{part.shape}".encode())
        for start in range(0, len(part), 4096):
            digest.update(np.ascontiguousarray(part[start : start + 4096]).data)
    return digest.hexdigest()


def write(data: FederatedData, folder: Path) -> None:
    """Write ``manifest.json`` and ``partition.npz`` into a folder, each whole or not at all."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        arrays = {
            f"{name}_{part}": getattr(rows, part) for name, rows in data.splits().items() for part in Rows._fields
        }
        with (folder / "partition.npz.part").open("wb") as file:
            np.savez_compressed(file, unseen=data.unseen, **arrays)
        (folder / "manifest.json.part").write_text(text(data))
        for name in ("partition.npz", "manifest.json"):
            os.replace(folder / f"{name}.part", folder / name)
    except OSError as error:
        raise SettingError(f"out = {folder} cannot be written ({error.strerror}): use a folder that can") from None


def read(source: Source, folder: Path) -> FederatedData:
    """The partition of a folder, verified against the source.

    Raises:
        SettingError: files are missing or damaged; the data, the indices or the figures are not those of the
            manifest; an example is in two places or lost; a client that trains has no training example.
    """
    try:
        note = json.loads((folder / "manifest.json").read_text())
        with (folder / "partition.npz").open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            splits = {n: Rows(arrays[f"{n}_rows"], arrays[f"{n}_offset"]) for n in SPLITS}
            unseen = arrays["unseen"]
        data_hash, index_hash, protocol = note["source_hash"], note["hash"], note["recipe"]["protocol"]
        said = len(source.y) - int(note["left_out"])
    except Exception as error:
        raise SettingError(f"{folder} holds no partition ({error}): make one with `weft partition make`") from None
    if source_hash(source) != data_hash:
        raise SettingError(f"the data {source.name!r} are not those that {folder} divides: make the partition anew")
    small = {k: v for k, v in note.items() if k not in ("counts", "histogram")}
    data = FederatedData(
        source, splits["train"], splits["validation"], splits["test"], protocol=protocol, manifest=small, unseen=unseen
    )
    total = sum(len(r.rows) for r in splits.values())
    if total != said:
        raise SettingError(f"{folder} divides {total} examples, and its manifest says {said}: some are lost or added")
    if hash_of(splits, unseen) != index_hash:
        raise SettingError(f"the indices in {folder} are not those of its manifest: make the partition anew")
    anew = manifest(source, splits, unseen, note["recipe"])
    for name, each in figures(source, splits).items():
        anew[name] = {split: found.tolist() for split, found in each.items()}
    wrong = [key for key in anew if key not in ("weft", "numpy") and anew[key] != note.get(key)]
    if wrong:
        raise SettingError(f"{wrong[0]} in the manifest of {folder} does not fit its indices: make the partition anew")
    return data
