"""Manifests: what they say is true, and whatever is altered afterwards is noticed."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.data.divided import labels, toy

from weft.core.errors import SettingError
from weft.data.federate import federate
from weft.data.manifest import read, source_hash, text, write

Arrays = dict[str, Any]
OWNER = np.arange(800) % 40


def test_a_manifest_says_what_there_is() -> None:
    source = toy()
    data = federate(source, new_clients=0.1)
    note = json.loads(text(data))
    assert note["recipe"]["alpha"] == 0.1 and note["recipe"]["seed"] == 0 and note["numpy"] == np.__version__
    for split, rows in data.splits().items():
        assert note["histogram"][split] == labels(data, split).tolist()
        assert note["counts"][split] == rows.counts.tolist()
    assert data.manifest.items() <= note.items() and len(note["hash"]) == len(note["source_hash"]) == 64


def test_a_large_population_is_written_whole() -> None:
    """Arrays are written in blocks, of which this has two."""
    source = toy(10_000, 0)
    data = federate(source, partition="iid", clients=4100, protocol="pooled", min_examples=1)
    note = json.loads(text(data))
    assert note["counts"]["train"] == data.train.counts.tolist()
    assert note["histogram"]["test"] == labels(data, "test").tolist()


@pytest.mark.parametrize("name", ["dirichlet", "pathological", "quantity", "natural"])
def test_a_recipe_makes_the_same_partition_again(name: str) -> None:
    source = toy(owner=OWNER)
    note = federate(source, partition=name, seed=7, new_clients=0.2, clients=np.int64(8)).manifest  # type: ignore[arg-type]
    recipe = {k: v for k, v in json.loads(json.dumps(note))["recipe"].items() if k not in ("moved", "redrawn")}
    assert federate(source, **recipe).manifest == note


@pytest.mark.parametrize("name", ["dirichlet", "natural"])
def test_written_and_read_it_is_the_same(tmp_path: Path, name: str) -> None:
    source = toy(owner=np.repeat(np.arange(40), 20))
    data = federate(source, partition=name, new_clients=0.1)
    write(data, tmp_path / "deep" / "folder")
    back = read(source, tmp_path / "deep" / "folder")
    assert back.manifest == data.manifest and back.protocol == data.protocol
    assert np.array_equal(back.unseen, data.unseen)
    for split, rows in data.splits().items():
        assert all(map(np.array_equal, rows, back.splits()[split]))
    assert sorted(p.name for p in (tmp_path / "deep" / "folder").iterdir()) == ["manifest.json", "partition.npz"]


def test_the_hash_of_a_source_is_of_its_content() -> None:
    source = toy(9000, 0)
    last = source.x.copy()
    last[-1, -1] += 1
    others = [dataclasses.replace(source, x=last), dataclasses.replace(source, y=(source.y + 1) % 10)]
    assert len({source_hash(s) for s in (source, *others)}) == 3
    strided = np.asfortranarray(source.x)
    assert source_hash(dataclasses.replace(source, x=strided)) == source_hash(source)


def swapped(a: Arrays) -> None:
    a["train_rows"][0], a["train_rows"][-1] = a["train_rows"][-1], a["train_rows"][0]


def doubled(a: Arrays) -> None:
    a["train_rows"][0] = a["train_rows"][-1]


def shared(a: Arrays) -> None:
    a["train_rows"][0] = a["validation_rows"][0]


def leaked(a: Arrays) -> None:
    a["train_rows"][0], a["test_rows"][0] = a["test_rows"][0], a["train_rows"][0]


def lost(a: Arrays) -> None:
    a["test_rows"] = a["test_rows"][:-1]
    a["test_offset"][a["test_offset"] == a["test_offset"][-1]] -= 1


def emptied(a: Arrays) -> None:
    a["train_offset"][1] = 0


def shifted(a: Arrays) -> None:
    a["train_offset"][1] += 1


def favoured(a: Arrays) -> None:
    a["unseen"] = np.array([3])


def torn(a: Arrays) -> None:
    a["train_offset"] = a["train_offset"][::-1]


def missing(a: Arrays) -> None:
    del a["unseen"]


@pytest.mark.parametrize(
    ("tamper", "sentence"),
    [
        (swapped, "the indices in .* are not those of its manifest"),
        (shifted, "the indices in .* are not those of its manifest"),
        (favoured, "the indices in .* are not those of its manifest"),
        (doubled, "is in two places: train of client 0 and train of client 19"),
        (shared, "is in two places: train of client 0 and validation of client"),
        (leaked, "official test split is in train of client 0"),
        (lost, "799 examples, and its manifest says 800"),
        (emptied, "client 0 has no training example"),
        (torn, "malformed"),
        (missing, "holds no partition"),
    ],
)
def test_altered_indices_are_noticed(tmp_path: Path, tamper: Callable[[Arrays], None], sentence: str) -> None:
    source = toy()
    write(federate(source), tmp_path)
    with np.load(tmp_path / "partition.npz") as held:
        arrays = {k: held[k].copy() for k in held.files}
    tamper(arrays)
    np.savez(tmp_path / "partition.npz", **arrays)
    with pytest.raises(SettingError, match=sentence):
        read(source, tmp_path)


@pytest.mark.parametrize("field", ["histogram", "counts", "unseen", "clients", "source"])
def test_altered_figures_are_noticed(tmp_path: Path, field: str) -> None:
    source = toy()
    write(federate(source), tmp_path)
    note = json.loads((tmp_path / "manifest.json").read_text())
    note[field] = None
    (tmp_path / "manifest.json").write_text(json.dumps(note))
    with pytest.raises(SettingError, match=f"{field} in the manifest"):
        read(source, tmp_path)


@pytest.mark.parametrize("field", ["x", "y"])
def test_changed_data_are_noticed(tmp_path: Path, field: str) -> None:
    source = toy()
    write(federate(source), tmp_path)
    changed = getattr(source, field).copy()
    changed[5] = (changed[5] + 1) % 10
    with pytest.raises(SettingError, match="the data 'toy' are not those"):
        read(dataclasses.replace(source, **{field: changed}), tmp_path)


@pytest.mark.parametrize("name", ["manifest.json", "partition.npz"])
@pytest.mark.parametrize("content", [None, b"", b"[]", b"{}", b"PK\x03\x04 torn"])
def test_damaged_files_get_one_sentence(tmp_path: Path, name: str, content: bytes | None) -> None:
    source = toy()
    write(federate(source), tmp_path)
    (tmp_path / name).unlink()
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(SettingError, match="holds no partition"):
        read(source, tmp_path)


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SettingError, match="cannot be written"):
        write(federate(toy()), tmp_path / "file")
