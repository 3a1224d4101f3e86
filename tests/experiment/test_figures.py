"""Which round is reported: the last one, and the one that validation chooses; never the one that the test would."""

from __future__ import annotations

import numpy as np

from weft.experiment.folder import Rows
from weft.experiment.history import History
from weft.experiment.summary import _figures

VALIDATION, TEST = [0.5, 0.8, 0.8, 0.6], [0.9, 0.4, 0.3, 0.7]


def test_validation_chooses_the_round() -> None:
    """The earliest of the best by validation, though the test is best in another."""
    rows = Rows()
    for n in range(1, 5):
        for split, values in (("validation", VALIDATION), ("test", TEST)):
            rows.add(n, split, "global", "all", {"accuracy": values[n - 1]})
    history = History()
    history.add(rows.parts)
    found = _figures(history, "global")
    assert found["chosen"] == {"round": 2, "by": "validation accuracy", "test": {"accuracy": 0.4}}
    assert found["last"] == {"round": 4, "test": {"accuracy": 0.7}}
    assert found["mean_last_10"]["test"]["accuracy"] == np.mean(TEST)
