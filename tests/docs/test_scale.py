"""The tables of docs/scale.md are those of its scripts, and the simulation does what it says."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def scripts(monkeypatch: pytest.MonkeyPatch) -> tuple[ModuleType, ModuleType]:
    monkeypatch.syspath_prepend(ROOT / "scripts" / "scale")
    for name in ("page", "simulate"):
        monkeypatch.setitem(sys.modules, name, None)  # so that nobody finds it after this test
        del sys.modules[name]
    import page
    import simulate

    return page, simulate


def test_the_tables_are_what_the_scripts_print(scripts: tuple[ModuleType, ModuleType]) -> None:
    text = (ROOT / "docs" / "scale.md").read_text()
    renewed = scripts[0].filled(text, scripts[0].parts())
    assert renewed == text, "run `python scripts/scale/page.py docs/scale.md` and commit what it writes"


def test_rounds_without_trouble_are_full_and_fair(
    scripts: tuple[ModuleType, ModuleType], monkeypatch: pytest.MonkeyPatch
) -> None:
    simulate = scripts[1]
    for name, value in (("LEAST", 1.0), ("MOST", 1.0), ("SESSION", 1e12), ("BREAKS", 0.0)):
        monkeypatch.setattr(simulate, name, value)
    found = simulate.simulate(simulate.Rounds(2000, 200, ((0, 1.0),)))
    assert (found.available, found.lost, found.reported) == ((2000.0, 2000.0), 0.0, 1.0)
    assert found.wasted == pytest.approx(0, abs=1e-9)
    assert found.slow == pytest.approx(0.25, abs=0.03)


def test_a_deadline_leaves_slow_clients_out(scripts: tuple[ModuleType, ModuleType]) -> None:
    simulate = scripts[1]
    base = simulate.Rounds(10**4, 100, ((0, 1.0),), extra=1.3, days=1.0)
    slow = [simulate.simulate(replace(base, deadline=d, quorum=0.0)).slow for d in (60.0, 300.0, 3000.0)]
    assert slow[0] < slow[1] <= slow[2] < 0.25
    assert simulate.simulate(replace(base, deadline=60.0, quorum=1.0)).lost == 1.0


def test_a_client_stays_in_its_class(scripts: tuple[ModuleType, ModuleType]) -> None:
    simulate = scripts[1]
    ids = np.arange(100_000)
    kinds = simulate.class_of(ids)
    assert np.bincount(kinds) / len(ids) == pytest.approx(simulate.SHARE, abs=0.01)
    assert (simulate.class_of(ids[::-1]) == kinds[::-1]).all()
