"""A schedule that halves the learning rate does what half the learning rate does, in divisors too."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest

from tests.laws.toys import differ, draw, gap, make, subjects, train

ALONGSIDE: dict[str, dict[str, float]] = {
    "apfl": {"lr_alpha": 0.1},
    "apple": {"lr_p": 0.01},
    "fedpac": {"lr_head": 0.1},
}
"""Further rates that follow the schedule."""


@pytest.mark.parametrize("name", subjects("schedule"))
def test_half_the_rate(name: str) -> None:
    rates: dict[str, Any] = {"lr": 0.1, **ALONGSIDE.get(name, {})}
    halved = {k: v / 2 for k, v in rates.items()}
    scheduled = train(make(name, **rates), rounds=2, drawn=partial(draw, rate=0.5))
    assert gap(scheduled, train(make(name, **halved), rounds=2)) <= 1e-9
    assert differ(scheduled, train(make(name, **rates), rounds=2))
