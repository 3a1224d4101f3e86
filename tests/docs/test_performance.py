"""The ratios in docs/performance.md are those of the speed benchmark's table."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PEERS = ("sequential", "pfllib_style", "pfl_research", "flower", "fedjax")
NAMES = {"S4, SCAFFOLD": "S4-scaffold", "S4, Ditto": "S4-ditto"}


def test_ratios_are_those_of_the_table() -> None:
    with (ROOT / "benchmarks/speed/table.csv").open() as file:
        known = {(r["workload"], r["precision"], r["peer"]): float(r["ratio"]) for r in csv.DictReader(file)}
    text = (ROOT / "docs/performance.md").read_text()
    rows = [[cell.strip() for cell in row.split("|")[1:-1]] for row in re.findall(r"^\| S\d.*\|$", text, re.MULTILINE)]
    assert len(rows) == 9
    for label, *cells in rows:
        workload = NAMES.get(label) or label[:2]
        precision = "bf16" if "bf16" in label else "fp32"
        for peer, cell in zip(PEERS, cells, strict=True):
            ratio = known.get((workload, precision, peer))
            assert (ratio is None) == (cell == ""), (label, peer)
            if ratio is not None:
                assert float(cell) == pytest.approx(ratio, rel=0, abs=0.0501), (label, peer)
