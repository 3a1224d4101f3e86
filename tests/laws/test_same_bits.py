"""Rerun = same bits; save, stop and resume = same bits."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.laws.toys import gap, make, start, subjects, train, trained
from weft.experiment import checkpoint


@pytest.mark.parametrize("name", subjects("bits"))
def test_rerun(name: str) -> None:
    assert gap(trained(name), train(make(name))) == 0


@pytest.mark.parametrize("name", subjects("bits"))
def test_resume(name: str, tmp_path: Path) -> None:
    whole, half = trained(name, 3), trained(name, 2)
    checkpoint.write(tmp_path, 2, half, {"told": 1.5})
    place = checkpoint.latest(tmp_path)
    assert place is not None
    number, restored, extra = checkpoint.restore(place, start(make(name)))
    assert (number, extra) == (2, {"told": 1.5})
    assert gap(half, restored) == 0
    assert gap(whole, train(make(name), federation=restored, first=3)) == 0
