"""How Weft scales: ``python -m benchmarks.scale [--only cohort,rounds,runs,population] [--out runs/scale]``.

Each part is measured in a process of its own, and is one JSON file in OUT/results; what is there is not measured again.
``python -m benchmarks.scale.page`` makes the page from them.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from benchmarks.scale import cohort, memory
from benchmarks.scale.memory import Row
from protocol import versions
from run import machine

PARTS: dict[str, Callable[[Path], Iterator[Row]]] = {
    "cohort": cohort.measure,
    **{f"rounds-{m}": lambda home, m=m: memory.over_rounds(m) for m in ("fedavg", "scaffold")},
    "runs": lambda home: memory.over_runs(),
    **{
        f"population-{m}-{k}": lambda home, m=m, k=k: memory.population(m, k)
        for m in ("scaffold", "ditto")
        for k in (1000, 10_000, 100_000)
    },
}


def main() -> None:
    """Measure what has not been measured."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="parts whose names begin so, with commas")
    parser.add_argument("--out", type=Path, default=Path("runs/scale"))
    parser.add_argument("--part", choices=list(PARTS), help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.part:
        measure(asked.part, asked.out)
        return
    for part in PARTS:
        if part.startswith(tuple(asked.only.split(","))) and not place(asked.out, part).exists():
            print(part, flush=True)
            subprocess.run([sys.executable, "-m", __spec__.parent, "--part", part, "--out", asked.out], check=True)


def place(home: Path, part: str) -> Path:
    """Where the result of a part is."""
    return home / "results" / f"{part}.json"


def measure(part: str, home: Path) -> None:
    """Measure a part in this process, and write it, whole or not at all."""
    started, load = time.strftime("%Y-%m-%d %H:%M"), os.getloadavg()[0]
    rows = list(PARTS[part](home))
    told = {"part": part, "started": started, "load_before": load, "machine": machine(), "rows": rows}
    to = place(home, part)
    to.parent.mkdir(parents=True, exist_ok=True)
    to.with_suffix(".part").write_text(json.dumps({**told, "versions": versions("weft", "torch", "numpy")}) + "\n")
    os.replace(to.with_suffix(".part"), to)


if __name__ == "__main__":
    main()
