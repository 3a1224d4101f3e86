"""A round in which a client's upload is lost is a round without that client."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests.laws.toys import EXAMPLES, ROWS, but, cohort, gap, subjects, trained
from weft.core.round import play

LOST = 2  # of the four clients of round 3


@pytest.mark.parametrize("name", subjects("lost"))
def test_a_lost_upload_is_no_client(name: str) -> None:
    """One of four trains on an example that is not a number, so that what it sends is not one either."""
    ids = cohort(3)
    gone = int(ids[LOST])
    x = EXAMPLES.x.clone()
    x[ROWS[gone]] = torch.nan
    poisoned = but(trained(name, 2), examples=replace(EXAMPLES, x=x))
    played = play(poisoned, 3, ids, skip_not_finite=True)
    assert played.skipped.unique().tolist() == [gone]
    without = play(trained(name, 2), 3, ids[ids != gone]).federation
    assert gap(played.federation, without) <= 1e-9
