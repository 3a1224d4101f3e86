"""The page on scale says what was measured. Nothing is timed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from benchmarks.scale import memory, page

from weft.core.allocator import give_back_freed_memory

MACHINE = {"processor": "p", "cores": 2, "memory_gib": 1, "system": "s"}
COHORTS = (1, 2, 10, 100, 1000)


def result(part: str, rows: list[dict[str, Any]]) -> dict[str, Any]:
    return {"part": part, "started": "2026-01-01 00:00", "machine": MACHINE, "versions": {"weft": "0"}, "rows": rows}


def timed(peer: str, fixed: float, each: float) -> list[dict[str, Any]]:
    return [{"peer": peer, "cohort": k, "seconds": [fixed + each * k] * 2 + [9.0], "steps": k} for k in COHORTS]


def test_a_line_is_found_and_what_is_off_it() -> None:
    found = page.fit({k: 0.002 + 0.001 * k for k in COHORTS})
    assert (found.fixed, found.each) == (pytest.approx(0.002), pytest.approx(0.001))
    assert found.off < 1e-9 and found(500) == pytest.approx(0.502)
    bent = {**{k: 0.001 * k for k in range(1, 60)}, 60: 0.12}  # one of many takes twice as long
    assert page.fit(bent).at == 60 and page.fit(bent).off == pytest.approx(0.5, abs=0.02)


def test_the_page_has_all_parts(tmp_path: Path) -> None:
    one = {"federate": 1.0, "prepare": 2.0, "training": 3.0, "evaluation": 4.0, "checkpoint": 5.0, "folder": 6.0}
    people = {
        k: {"clients": k, "peak": 500 + k / 1000, "indices": 7.0, "examples": 8.0, **one} for k in (1000, 100_000)
    }
    holds = {"tensors": 5, "threads": 2, "files": 3, "folders": 0}
    parts = [
        result("population-ditto-100000", [people[100_000]]),
        result("population-ditto-1000", [people[1000]]),
        result("runs", [{"run": n, "resident": 100 + n / 1024, **holds} for n in range(1, 101)]),
        result(
            "rounds-fedavg",
            [{"round": n, "resident": 100.0 + (n % 50 > 0) + n / 500, "used": 50 + n / 500} for n in range(1, 501)],
        ),
        result("cohort", timed("Weft", 0.003, 0.001) + timed("plain loop", 0.0, 0.002)),
    ]
    (tmp_path / "results").mkdir()
    for part in parts:
        (tmp_path / "results" / f"{part['part']}.json").write_text(json.dumps(part))
    page.write(page.read(tmp_path), tmp_path)
    text = (tmp_path / "README.md").read_text()
    assert "3 ms and 1 ms for each client" in text
    assert "| 1,000 | 1003 (1003 to 9000) | 1 | 1003 | 2000 | 2.0 | 3 |" in text
    after = (
        "| fedavg, after | 100.1 | 100.2 | 100.3 | 100.4 | 100.5 | 100.6 | 100.7 | 100.8 | 100.9 | 101.0 | +0.90 % |"
    )
    assert after in text and "| fedavg, most before | 101.1 | 101.2 |" in text
    assert "| fedavg, in use | 50.1 | 50.2 |" in text and "| 51.0 | +1.80 % |" in text
    assert "changes by +1 KiB a run" in text
    assert "| ditto, 100,000 | 600 | +99 (+19.8 %) | 7.0 | 6 | 1.00 | 2.00 | 3.00 | 4.00 | 5.00 |" in text
    assert text.index("ditto, 1,000") < text.index("ditto, 100,000")
    assert ElementTree.parse(tmp_path / "cohort.svg").getroot().tag.endswith("svg")
    assert len((tmp_path / "cohort.csv").read_text().splitlines()) == 1 + 3 * 2 * len(COHORTS)
    assert len((tmp_path / "memory.csv").read_text().splitlines()) == 1 + 500 * 3 + 100 * 6 + 2 * 10


def test_memory_is_that_of_this_process() -> None:
    give_back_freed_memory()  # else what other tests have freed is resident already, and is used again
    before, used = memory.resident(), memory.in_use()
    ballast = b"x" * 2**26
    assert memory.resident() > before + 60 and memory.peak() >= memory.resident()
    assert memory.in_use() == pytest.approx(used + 64, abs=2)
    del ballast
