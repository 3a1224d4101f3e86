"""The benchmark of many nodes, with few."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("flwr", reason="weft[flower] is not installed")


@pytest.mark.filterwarnings("ignore:GitWildMatchPattern:DeprecationWarning")
def test_memory_of_the_server_does_not_grow_with_rounds(tmp_path: Path) -> None:
    from benchmarks.nodes import measure

    from weft.experiment.plugins import load_methods

    load_methods()
    found = measure(3, 3, tmp_path)
    assert len(found) == 3
    first, last = sum(found[0][:2]), sum(found[-1][:2])
    assert 0 < last < 1.1 * first, found
