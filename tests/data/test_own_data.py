"""A user's own arrays and tables: every accepted layout means the same, and every fault is one sentence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from weft.core.errors import SettingError
from weft.data.load import load

rng = np.random.default_rng(0)
X = rng.normal(size=(40, 3)).astype(np.float32)
Y = np.arange(40) % 4
TEST = np.arange(40) % 5 == 0
IMAGES = rng.integers(0, 256, (40, 3, 8, 9), np.uint8)


def test_npz_npy_folder_and_parquet_agree(tmp_path: Path) -> None:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    np.savez_compressed(tmp_path / "mine.npz", x=X, y=Y, test=TEST, owner=Y // 2 + 7)
    for folder in ("arrays/mine", "tables/mine", "lists/mine"):
        (tmp_path / folder).mkdir(parents=True)
    for field, value in {"x": X, "y": Y, "test": TEST, "owner": Y // 2 + 7}.items():
        np.save(tmp_path / "arrays/mine" / f"{field}.npy", value)
    side = {"y": Y, "test": TEST, "owner": np.where(Y < 2, "north", "south")}
    table = pa.table({"a": X[:, 0], "b": X[:, 1], "c": X[:, 2], **side})
    pq.write_table(table[:25], tmp_path / "tables/mine/0.parquet")
    pq.write_table(table[25:], tmp_path / "tables/mine/1.parquet")
    pq.write_table(pa.table({"x": list(X), **side}), tmp_path / "lists/mine/0.parquet")
    names = ["mine.npz", "arrays/mine", "tables/mine", "lists/mine", "lists/mine/0.parquet"]
    for s in [load(str(tmp_path / name)) for name in names]:
        assert s.kind == "tabular" and s.classes == 4 and s.name in ("mine", "0")
        assert s.test is not None and s.owner is not None
        for ours, theirs in ((s.x, X), (s.y, Y), (s.test, TEST), (s.owner, Y // 2)):
            assert np.array_equal(ours, theirs)
        assert np.allclose(s.shift, X[~TEST].mean(0), atol=1e-6)
        assert np.allclose(s.scale, 1 / X[~TEST].std(0), rtol=1e-5)


def test_npy_folder_is_mapped_and_its_files_cannot_change(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", IMAGES)
    np.save(tmp_path / "y.npy", Y)
    s = load(f"npz:{tmp_path}")
    assert isinstance(s.x.base, np.memmap) and s.x.flags.writeable
    s.x[0] = 0
    del s
    assert np.array_equal(np.load(tmp_path / "x.npy"), IMAGES)


@pytest.mark.parametrize(
    ("x", "kind", "shape"),
    [
        (IMAGES, "image", (40, 3, 8, 9)),
        (IMAGES.transpose(0, 2, 3, 1), "image", (40, 3, 8, 9)),
        (IMAGES[:, 0], "image", (40, 1, 8, 9)),
        (IMAGES / 255.0, "image", (40, 3, 8, 9)),
        (IMAGES[:, 0].astype(np.float64), "series", (40, 8, 9)),
        (IMAGES[:, 0].astype(np.int16), "series", (40, 8, 9)),
        (IMAGES[:, 0, 0], "tabular", (40, 9)),
        (X.astype(np.float16), "tabular", (40, 3)),
    ],
)
def test_the_kind_is_read_from_the_shape(x: np.ndarray, kind: str, shape: tuple[int, ...], tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=x, y=Y, test=TEST)
    s = load(str(tmp_path / "a.npz"))
    assert (s.kind, s.x.shape) == (kind, shape)
    moved = x.transpose(0, 3, 1, 2) if x.shape[-1] == 3 and x.ndim == 4 else x
    assert np.allclose(s.x.ravel(), moved.ravel())


def test_separate_test_arrays_and_one_file_per_client(tmp_path: Path) -> None:
    for k in range(3):
        np.savez(tmp_path / f"{k}.npz", x=X[k::3], y=Y[k::3], x_test=X[k : k + 2], y_test=Y[k : k + 2])
    s = load(str(tmp_path))
    assert s.owner is not None and s.test is not None
    for k in range(3):
        mine = s.owner == k
        assert np.array_equal(s.x[mine & ~s.test], X[k::3]) and np.array_equal(s.y[mine & s.test], Y[k : k + 2])


def test_without_a_test_split_scaling_learns_from_what_is_not_held_out(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=X, y=Y)
    s = load(str(tmp_path / "a.npz"))
    assert s.test is not None and "held out" in s.note
    assert np.array_equal(np.bincount(s.y[s.test]), [2, 2, 2, 2])
    assert np.allclose(s.shift, X[~s.test].mean(0), atol=1e-6)
    np.savez(tmp_path / "b.npz", x=IMAGES, y=Y)
    assert load(str(tmp_path / "b.npz")).test is None


@pytest.mark.parametrize(
    ("y", "expected", "classes"),
    [
        (Y.astype(np.float32), Y, 4),
        (Y[:, None], Y, 4),
        (np.array(["cat", "ant", "dog", "bee"])[Y], np.array([2, 0, 3, 1])[Y], 4),
        (Y % 2 * 2 - 1, Y % 2, 2),
        (Y * 2, Y * 2, 7),
    ],
)
def test_labels_may_be_written_in_several_ways(
    y: np.ndarray, expected: np.ndarray, classes: int, tmp_path: Path
) -> None:
    np.savez(tmp_path / "a.npz", x=X, y=y)
    s = load(str(tmp_path / "a.npz"))
    assert np.array_equal(s.y, expected) and s.classes == classes


def test_strings_are_tokenised_without_the_test_texts(tmp_path: Path) -> None:
    pytest.importorskip("tokenizers")
    texts = np.array(["Red wine, please", "white wine", "", "unheard thing"])
    np.savez(tmp_path / "a.npz", x=texts, y=[0, 1, 0, 1], test=[0, 0, 0, 1])
    for units in ("word", "bpe"):
        s = load(str(tmp_path / "a.npz"), length=5, units=units)
        assert s.kind == "text" and s.x.shape == (4, 5) and s.x.dtype == np.int32
        assert s.x.max() < s.vocabulary
        assert np.array_equal(s.x[2], [1, 0, 0, 0, 0])
    s = load(str(tmp_path / "a.npz"), length=5)
    assert np.array_equal(s.x[3], [1, 1, 0, 0, 0]) and s.vocabulary == 2 + 5
    assert s.x[0, 1] == s.x[1, 1] and (s.x[0] > 1).sum() == 4


bad = X.copy()
bad[3, 1] = np.nan


@pytest.mark.parametrize(
    ("arrays", "part"),
    [
        ({"x": bad, "y": Y}, "1 NaN"),
        ({"x": X, "y": Y[:-1]}, "[39]"),
        ({"x": X, "y": np.eye(4)[Y]}, "[40, 4]"),
        ({"x": X, "y": Y + 0.5}, "fractions"),
        ({"x": X, "y": np.where(Y, np.nan, 1.0)}, "30 NaN"),
        ({"x": X, "y": Y * 1000}, "3000"),
        ({"x": X, "y": np.array([{}] * 40, object)}, "allow_pickle"),
        ({"x": X}, "'y'"),
        ({"y": Y, "image": X}, "'x'"),
        ({"x": X, "y": Y, "x_test": X}, "'y_test'"),
        ({"x": X, "y": Y, "x_test": X[:, :2], "y_test": Y}, "do not agree"),
        ({"x": X, "y": Y, "x_test": X, "y_test": Y, "owner": Y}, "owner"),
        ({"x": X, "y": Y, "test": Y}, "test"),
        ({"x": X, "y": Y, "test": TEST[:9]}, "[9]"),
        ({"x": X, "y": Y, "test": TEST | True}, "every example"),
        ({"x": X, "y": Y, "owner": np.full(40, np.nan)}, "owner"),
        ({"x": X[:0], "y": Y[:0]}, "[0, 3]"),
        ({"x": np.float32(3), "y": Y}, "[]"),
        ({"x": X * 1j, "y": Y}, "complex64"),
        ({"x": X[:, 0], "y": Y}, "[40]"),
        ({"x": X.astype(np.float64) * 1e60, "y": Y}, "infinite"),
    ],
)  # fmt: skip
def test_faulty_arrays_are_one_sentence(arrays: dict[str, Any], part: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(SettingError, match="^[^\n]*$") as caught:
        load(str(tmp_path / "a.npz"))
    assert part in str(caught.value)


def test_faulty_files_are_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "mapped").mkdir()
    (tmp_path / "text.npz").write_text("hello")
    (tmp_path / "none.npz").write_bytes(b"")
    np.save(tmp_path / "mapped/x.npy", X)
    (tmp_path / "mapped/y.npy").write_bytes(b"\x93NUMPY")
    for name in ("empty", "mapped", "text.npz", "none.npz", "npz:absent.npz"):
        with pytest.raises(SettingError, match="^[^\n]*$") as caught:
            load(name if ":" in name else str(tmp_path / name))
        assert name.removeprefix("npz:") in str(caught.value)
    np.savez(tmp_path / "empty/0.npz", x=X, y=Y)
    np.savez(tmp_path / "empty/1.npz", x=X, y=Y, test=TEST)
    with pytest.raises(SettingError, match="only some .* 'test'"):
        load(str(tmp_path / "empty"))


@pytest.mark.parametrize(
    ("columns", "part"),
    [
        ({"a": X[:, 0]}, "a label column y"),
        ({"a": [], "y": []}, "0 rows"),
        ({"a": ["x"] * 40, "y": Y}, "'a' holds string"),
        ({"x": [[1.0]] * 39 + [[1.0, 2.0]], "y": Y}, "differ in length"),
        ({"a": [None] + [1.0] * 39, "y": Y}, "1 NaN"),
        ({"a": X[:, 0], "y": [None, *Y[1:].tolist()]}, "'y' has 1 empty"),
        ({"y": Y}, "[40, 0]"),
    ],
)
def test_faulty_tables_are_one_sentence(columns: dict[str, Any], part: str, tmp_path: Path) -> None:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    with pytest.raises(SettingError, match="^[^\n]*$") as caught:
        load(str(tmp_path / "a.parquet"))
    assert part in str(caught.value)
    (tmp_path / "b.parquet").write_text("hello")
    for name in ("b.parquet", "c.parquet"):
        with pytest.raises(SettingError, match=name):
            load(f"parquet:{tmp_path / name}")


def test_nested_lists_are_images(tmp_path: Path) -> None:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    pq.write_table(pa.table({"x": IMAGES.tolist(), "y": Y}), tmp_path / "a.parquet")
    s = load(str(tmp_path / "a.parquet"))
    assert s.kind == "image" and s.x.dtype == np.uint8 and np.array_equal(s.x, IMAGES)
