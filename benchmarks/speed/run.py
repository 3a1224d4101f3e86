"""Run the speed benchmark: python benchmarks/speed/run.py [--only S1,S3] [--peers weft,sequential] [--blocks 5].

Peers take turns, in blocks: each block is a fresh process that plays some rounds, and the next peer's block comes
before this peer's next one, so that a slow minute of the machine hits all of them. A finished block is one JSON file
in HOME/results; what is there is not run again, so that the benchmark may be stopped and started at any time.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from workloads import WORKLOADS, Workload, grid, load, prepare

HERE = Path(__file__).resolve().parent
CORES = 2
"""All peers have as many."""


@dataclass(frozen=True)
class Peer:
    """A row of the table."""

    name: str
    workloads: tuple[str, ...]
    precisions: tuple[str, ...] = ("fp32",)
    installed: bool = False  # in an environment of its own, from peers/requirements-NAME.txt
    script: str = ""  # by default NAME.py
    extra: tuple[str, ...] = ()

    def command(self, python: Path) -> list[str]:
        """How its process is started."""
        return [str(python), str(HERE / "peers" / (self.script or f"{self.name}.py")), *self.extra]


TRAINED = ("S1", "S2", "S3", "S4-scaffold", "S4-ditto", "S5", "S6")
BOTH = ("fp32", "bf16")
PEERS = {
    p.name: p
    for p in (
        Peer("weft", (*TRAINED, "S7", "S8"), BOTH),
        Peer("sequential", (*TRAINED, "S7"), BOTH),
        Peer("pfllib_style", ("S1", "S2", "S3", "S5")),
        Peer("flower", ("S1", "S2", "S3", "S5"), BOTH, installed=True),
        Peer("pfl_research", ("S1", "S2", "S3", "S4-scaffold", "S5"), BOTH, installed=True),
        Peer("fedjax", ("S1", "S2", "S3", "S5"), installed=True),
        Peer("weft_one_by_one", ("S8",), script="weft.py", extra=("--sweep", "one-by-one")),
    )
}
IN_BF16 = ("S2",)
"""Workloads that are also run in bf16, where the processor multiplies it."""


def machine() -> dict[str, Any]:
    """What the figures depend on."""
    told = Path("/proc/cpuinfo").read_text()
    fields = dict(line.split(":", 1) for line in told.splitlines() if ":" in line)
    facts = {k.strip(): v.strip() for k, v in fields.items()}
    flags = facts.get("flags", "").split()
    memory = next(line for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("MemTotal"))
    return {
        "processor": facts.get("model name", platform.processor()),
        "cores": len(os.sched_getaffinity(0)),
        "instructions": [f for f in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if f in flags],
        "memory_gib": round(int(memory.split()[1]) / 2**20, 1),
        "system": f"{platform.system()} {platform.release()}",
    }


def environment(peer: Peer, home: Path) -> Path:
    """The interpreter of a peer, with its packages."""
    if not peer.installed:
        return Path(sys.executable)
    place = home / "env" / peer.name
    wanted = HERE / "peers" / f"requirements-{peer.name}.txt"
    python, stamp = place / "bin" / "python", place / "installed.txt"
    if python.exists() and stamp.exists() and stamp.read_text() == wanted.read_text():
        return python
    print(f"installing {peer.name}", flush=True)
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(place)], check=True)
    subprocess.run([str(python), "-m", "pip", "install", "-q", "-r", str(wanted)], check=True)
    stamp.write_text(wanted.read_text())
    return python


def block(
    peer: Peer, workload: Workload, precision: str, number: int, home: Path, python: Path, limit: float = 3600
) -> dict[str, Any]:
    """Run one block, unless it is there; its result, or what went wrong, which the next start tries again."""
    place = home / "results" / f"{workload.name}-{precision}" / f"{peer.name}-{number}.json"
    runs = len(list(grid(workload))) if workload.kind == "sweep" else 1
    settings = {"rounds": workload.rounds, "warmup": workload.warmup, "updates": workload.cohort * runs}
    if place.exists() and "error" not in (found := json.loads(place.read_text())) and found["settings"] == settings:
        return dict(found)
    place.parent.mkdir(parents=True, exist_ok=True)
    folder = home / "data" / workload.name
    command = [
        *peer.command(python), "--workload", workload.name, "--folder", str(folder), "--rounds", str(workload.rounds),
        "--warmup", str(workload.warmup), "--precision", precision, "--out", str(place),
    ]  # fmt: skip
    hidden = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")  # a peer sets its own threads
    around = {k: v for k, v in os.environ.items() if k not in hidden}
    before, began = os.getloadavg()[0], time.time()
    place.unlink(missing_ok=True)
    started = subprocess.Popen(
        command, env=around, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        told = started.communicate(timeout=limit)[1]
        failed = "" if started.returncode == 0 and place.exists() else (told.strip() or "it wrote no result")
    except subprocess.TimeoutExpired:
        failed = f"stopped after {limit:.0f} s"
    finally:  # also when this process is stopped, and with the processes that the peer has started
        if started.poll() is None:
            os.killpg(started.pid, signal.SIGKILL)
            started.communicate()
    result: dict[str, Any] = {"workload": workload.name, "precision": precision}
    result |= {"error": failed.splitlines()[-1], "log": failed[-4000:]} if failed else json.loads(place.read_text())
    result |= {"peer": peer.name, "block": number, "load_before": before, "machine": machine()}
    result |= {"started": time.strftime("%Y-%m-%d %H:%M", time.gmtime(began)), "wall_seconds": time.time() - began}
    result |= {"settings": settings, "expected": expected(workload, folder)}
    result["data"] = json.loads((folder / "recipe.json").read_text())["note"]
    part = place.with_suffix(".part")
    part.write_text(json.dumps(result, indent=1) + "\n")
    os.replace(part, place)
    return result


def expected(workload: Workload, folder: Path) -> dict[str, list[int]]:
    """Examples and steps of every timed round."""
    told = load(workload, folder)
    cohorts = told.cohorts[workload.warmup : workload.warmup + workload.rounds]
    examples, steps = zip(*(told.work(ids) for ids in cohorts), strict=True)
    return {"examples": list(examples), "steps": list(steps)}


def measure(
    workloads: Sequence[Workload], peers: Mapping[str, Peer], home: Path, blocks: int, precisions: Sequence[str]
) -> list[dict[str, Any]]:
    """All blocks that are missing, peers in turn; every result."""
    results = []
    environments: dict[str, Path] = {}
    for w in workloads:  # before anything is measured, so that data that are missing are missed at once
        prepare(w, home / "data" / w.name)
    for w in workloads:
        for precision in precisions:
            here = [p for p in peers.values() if w.name in p.workloads and precision in p.precisions]
            if precision != "fp32" and w.name not in IN_BF16:
                continue
            for number in range(blocks):
                turn = number % max(len(here), 1)  # nobody always comes after the same one
                for peer in here[turn:] + here[:turn]:
                    if peer.name not in environments:
                        environments[peer.name] = environment(peer, home)
                    result = block(peer, w, precision, number, home, environments[peer.name])
                    results.append(result)
                    print(line(result), flush=True)
    return results


def line(result: Mapping[str, Any]) -> str:
    """A block in one line."""
    said = f"{result['workload']} {result['precision']} block {result['block']} {result['peer']:16s}"
    if "error" in result:
        return f"{said} failed: {result['error']}"
    seconds, right, busy = median(result["seconds"]), result["accuracy"], result["load_before"]
    return f"{said} {seconds:9.4f} s, accuracy {right:.4f}, load before {busy:.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default=",".join(WORKLOADS), help="workloads, with commas")
    parser.add_argument("--peers", default=",".join(PEERS), help="peers, with commas")
    parser.add_argument("--blocks", type=int, default=5)
    parser.add_argument("--home", type=Path, default=Path("runs/speed"), help="data, environments and results")
    parser.add_argument("--precision", default="fp32,bf16", help="bf16 is for S2, on processors that multiply it")
    parser.add_argument("--fresh", action="store_true", help="throw away what there is of these workloads and peers")
    asked = parser.parse_args()
    peers = {name: PEERS[name] for name in asked.peers.split(",")}
    workloads = [WORKLOADS[name] for name in asked.only.split(",")]
    precisions = asked.precision.split(",")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:CORES])
    if "bf16" in precisions and not {"avx512_bf16", "amx_bf16"} & set(machine()["instructions"]):
        precisions.remove("bf16")
    if asked.fresh:
        for w in workloads:
            for place in (asked.home / "results").glob(f"{w.name}-[fb]*/*.json"):
                if place.stem.rpartition("-")[0] in peers:
                    place.unlink()
    results = measure(workloads, peers, asked.home.resolve(), asked.blocks, precisions)
    if failed := [r for r in results if "error" in r]:
        raise SystemExit(f"{len(failed)} of {len(results)} blocks failed; start again to try them once more")


if __name__ == "__main__":
    main()
