"""Tensors that are written block by block are those that a reader of safetensors finds."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from weft.experiment import streamed
from weft.experiment.streamed import stream


class Halves:
    """A tensor in two parts."""

    def __init__(self, whole: Tensor) -> None:
        self.whole, self.shape, self.dtype = whole, tuple(whole.shape), whole.dtype

    def blocks(self) -> Iterator[Tensor]:
        yield from torch.split(self.whole, 2)


def test_every_type_and_shape_comes_back(tmp_path: Path) -> None:
    """The narrow ones first, in odd numbers, so that the wide ones would not be aligned."""
    drawn = torch.rand(3, 5, generator=torch.Generator().manual_seed(0)) * 100
    tensors = {str(dtype): drawn.to(dtype) for dtype in reversed(streamed._NAMES)}
    tensors |= {"scalar": torch.tensor(2.5), "none": torch.zeros(0, 4), "turned": drawn.T, "part": drawn[1:, ::2]}
    parts = {name: Halves(x) if name == "torch.float64" else x for name, x in tensors.items()}
    digest = stream(tmp_path / "file", parts, {"about": "a test"})
    assert digest == hashlib.sha256((tmp_path / "file").read_bytes()).hexdigest()
    found = load_file(tmp_path / "file")
    assert set(found) == set(tensors)
    for name, x in tensors.items():
        assert found[name].dtype == x.dtype and torch.equal(found[name], x), name
    with safe_open(tmp_path / "file", "pt") as file:
        assert file.metadata() == {"about": "a test"}


def test_a_type_that_has_no_name_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(KeyError):
        stream(tmp_path / "file", {"a": torch.zeros(2, dtype=torch.complex64)})
    assert not list(tmp_path.iterdir())
