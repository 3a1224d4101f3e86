"""The ledger against figures computed from the definitions, on fifty settings, the extremes included."""

from __future__ import annotations

import math

import pytest

pytest.importorskip("dp_accounting", reason="the ledger needs the package dp-accounting")
pytest.importorskip("scipy", reason="the independent figures need scipy")

from tests.privacy import accountant

from weft.core.errors import SettingError
from weft.privacy.ledger import Ledger, in_words, usual_delta

POISSON = [  # noise, clients of a cohort of 1000, rounds, delta
    (0.3, 50, 1, 1e-5), (0.3, 50, 100, 1e-5), (0.3, 10, 30, 1e-9), (0.5, 1, 10, 1e-5), (0.5, 20, 1000, 1e-6),
    (0.5, 500, 10, 1e-3), (0.7, 100, 50, 1e-5), (0.7, 900, 3, 1e-8), (0.8, 10, 300, 1e-5), (1.0, 1, 1, 1e-9),
    (1.0, 10, 500, 1e-5), (1.0, 50, 1, 1e-9), (1.0, 50, 10000, 1e-5), (1.0, 990, 100, 1e-5), (1.0, 300, 20, 1e-12),
    (1.3, 100, 1000, 1e-5), (1.5, 20, 3000, 1e-4), (2.0, 500, 1, 1e-5), (2.0, 200, 200, 1e-7), (3.0, 50, 10000, 1e-5),
    (5.0, 50, 1, 1e-5), (5.0, 999, 1000, 1e-5), (10.0, 10, 100_000, 1e-5), (30.0, 500, 30, 1e-2),
    (100.0, 50, 10000, 1e-5),
]  # fmt: skip
WHOLE = [  # noise, rounds, delta: everybody is in every round
    (0.05, 10, 1e-5), (0.3, 1, 1e-5), (0.3, 10000, 1e-5), (0.7, 30, 1e-9), (1.0, 1, 1e-5),
    (1.0, 100, 1e-3), (2.0, 50, 1e-6), (5.0, 1000, 1e-12), (20.0, 1, 1e-2), (100.0, 100_000, 1e-5),
]  # fmt: skip
FIXED = [  # noise, clients of a cohort of 1000, rounds, delta
    (1.0, 1, 10, 1e-5), (1.0, 50, 1, 1e-9), (1.0, 50, 100, 1e-5), (1.0, 990, 3, 1e-5), (4.0, 50, 1, 1e-5),
    (4.0, 10, 1000, 1e-5), (4.0, 50, 10000, 1e-6), (4.0, 300, 20, 1e-3), (4.0, 990, 100, 1e-5), (1.0, 10, 10, 1e-2),
]  # fmt: skip
LOCAL = [(0.3, 3, 1e-5), (1.0, 1, 1e-9), (4.0, 20, 1e-5), (10.0, 1, 1e-3), (50.0, 300, 1e-6)]


def test_fifty_settings() -> None:
    assert len(POISSON + WHOLE + FIXED + LOCAL) == 50


@pytest.mark.parametrize(("z", "cohort", "rounds", "delta"), POISSON)
def test_poisson(z: float, cohort: int, rounds: int, delta: float) -> None:
    own = accountant.sampled(z, cohort / 1000, rounds, delta)
    assert Ledger("poisson", z, 1000, cohort, delta).epsilon(rounds) == pytest.approx(own, rel=0.01)


@pytest.mark.parametrize(("z", "rounds", "delta"), WHOLE)
def test_everybody_in_every_round(z: float, rounds: int, delta: float) -> None:
    assert Ledger("poisson", z, 30, 30, delta).epsilon(rounds) == pytest.approx(
        accountant.gaussian(z, rounds, delta), rel=0.01
    )
    assert Ledger("fixed", z, 30, 30, delta).epsilon(rounds) == pytest.approx(
        accountant.gaussian(z / 2, rounds, delta), rel=0.01
    )


@pytest.mark.parametrize(("z", "cohort", "rounds", "delta"), FIXED)
def test_without_replacement(z: float, cohort: int, rounds: int, delta: float) -> None:
    own = accountant.replaced(z / 2, 1000, cohort, rounds, delta)
    assert Ledger("fixed", z, 1000, cohort, delta).epsilon(rounds) == pytest.approx(own, rel=0.01)


@pytest.mark.parametrize(("z", "turns", "delta"), LOCAL)
def test_local(z: float, turns: int, delta: float) -> None:
    """Drawing hides nothing, and a replacement moves an upload by two clip norms."""
    own = accountant.gaussian(z / 2, turns, delta)
    assert Ledger("local", z, 1000, 10, delta).epsilon(turns) == pytest.approx(own, rel=0.01)


def test_the_card_s_anchor() -> None:
    """One round of everybody with z = 1: 4.73 by Renyi divergences, of which the exact figure is a little less."""
    assert 4.3 < Ledger("poisson", 1.0, 10, 10, 1e-5).epsilon(1) < 4.73


def test_more_rounds_and_clients_cost_more_and_noise_less() -> None:
    for drawing in ("poisson", "fixed"):
        costs = [Ledger(drawing, 1.0, 100, 10, 1e-5).epsilon(t) for t in (0, 1, 10, 100)]
        assert costs[0] == 0 and costs == sorted(set(costs))
        costs = [Ledger(drawing, 1.0, 100, m, 1e-5).epsilon(10) for m in (1, 10, 50, 100)]
        assert costs == sorted(set(costs))
        costs = [Ledger(drawing, z, 100, 10, 1e-5).epsilon(10) for z in (8.0, 2.0, 0.5)]
        assert costs == sorted(set(costs))
        assert Ledger(drawing, 0.0, 100, 10, 1e-5).epsilon(1) == math.inf


@pytest.mark.parametrize("drawing", ["poisson", "fixed", "local"])
def test_a_budget_pays_for_the_rounds_before_it_is_passed(drawing: str) -> None:
    ledger = Ledger(drawing, 4.0, 1000, 50, 1e-5)  # type: ignore[arg-type]
    pays = ledger.fits(3.0, 5000)
    assert 0 < pays < 5000
    assert ledger.epsilon(pays) <= 3.0 < ledger.epsilon(pays + 1)
    assert ledger.fits(1e9, 40) == 40
    assert ledger.fits(1e-9, 40) == 0


def test_bad_numbers() -> None:
    with pytest.raises(SettingError, match="delta = 1.5"):
        Ledger("fixed", 1.0, 10, 5, 1.5)
    with pytest.raises(SettingError, match="cohort = 50"):
        Ledger("fixed", 1.0, 10, 50, 1e-5)


def test_words() -> None:
    assert usual_delta(1000) == 0.0005
    assert usual_delta(20) < 1 / 20
    told = {"rounds": 3, "epsilon": 7.123, "budget": 8.0, "noise": "stream"}
    said = {**Ledger("fixed", 1.0, 10, 5, 1e-5).described(), **told}
    text = in_words({**said, "stopped_by_budget": True})
    assert text.startswith(
        "epsilon = 7.12 at delta = 1e-05 after 3 rounds, and one more would pass the budget of 8 (rep"
    )
    assert "no privacy" in in_words({**said, "epsilon": None, "stopped_by_budget": False})
