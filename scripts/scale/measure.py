"""What a client costs the server, measured on this machine: the coefficients of docs/scale.md.

    python scripts/scale/measure.py             # all of them into measured.json, each in a process of its own
    python scripts/scale/measure.py state seats # only these

Times are the best of several repetitions; what grows with the number of clients is the slope between two numbers.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # the unit is the second of one core
HERE = Path(__file__).parent


def best(work: Callable[[], Any], seconds: float = 2.0) -> float:
    """Least seconds of a call."""
    end, found = time.perf_counter() + seconds, float("inf")
    while time.perf_counter() < end:
        began = time.perf_counter()
        work()
        found = min(found, time.perf_counter() - began)
    return found


def arithmetic() -> dict[str, float]:
    """Seconds of one core for each byte of an upload of 4 MB, in float32."""
    import torch

    from weft.core.channel import mean
    from weft.server import median
    from weft.wire import Quantise, TopK, pack, unpack

    size, clients = 2**20, 16
    stack = {"w": torch.randn(clients, size)}
    one, weights = {"w": stack["w"][0].clone()}, torch.ones(clients)
    total, count = 4.0 * size, clients
    data = pack(one)
    small = {"w": stack["w"][:, : size // 16].clone()}
    quantised, sparse = Quantise(16), TopK(0.01)
    coded = quantised.pack(quantised.apply(one, (), torch.tensor(1))[0])
    found = {
        "unpack": best(lambda: unpack(data, one)) / total,
        "finite": best(lambda: stack["w"].sum().isfinite()) / total / count,
        "sum": best(lambda: mean(stack, weights)) / total / count,
        "median": best(lambda: median(small, weights)) / total / count * 16,
        "copy": best(lambda: one["w"].clone()) / total,
        "unpack quantised to 16 levels": best(lambda: quantised.unpack(coded, one)) / total,
    }
    arrived = sparse.apply(one, sparse.init(one), torch.tensor(1))[0]
    words = sparse.pack(arrived)
    found["unpack the largest 1 %"] = best(lambda: sparse.unpack(words, one)) / total
    return found


def drawing() -> dict[str, float]:
    """Seconds for each client: of the population for the cohort, of the cohort for its batches."""
    import numpy as np
    import torch

    from weft.core.method import Phase
    from weft.core.stream import stream
    from weft.local.batches import draw_turns

    found = {}
    for population in (10**4, 10**6, 10**7):
        # as `Run` draws a cohort: who is able, then some of them
        took = best(
            lambda n=population: stream(0, "cohort", 1).choice(np.setdiff1d(np.arange(n), []), 100, replace=False)
        )
        found[f"cohort of {population:,}"] = took / population
    rows = [np.arange(50) for _ in range(1000)]
    given: dict[str, Any] = {"seed": 0, "number": 1, "epochs": 1, "batch_size": 10, "rate": 1.0}
    given |= {"dtype": torch.float32, "device": torch.device("cpu")}
    names, past = list(range(1000)), [0] * 1000
    found["batches"] = best(lambda: draw_turns(rows, names, {"local": Phase()}, past, **given)) / 1000
    return found


def peak() -> float:
    """Most resident bytes of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0


def run(method: str, clients: int, cohort: int, rounds: int, model: str, out: str = "", **given: Any) -> Any:
    """A run on noise: 5 examples of 28 x 28 for each client, the same 100,000 examples in memory for any number."""
    import numpy as np

    import weft
    from weft.data.source import Source

    rng = np.random.default_rng(0)
    n = 100_000
    x = rng.integers(0, 256, (n, 1, 28, 28), dtype=np.uint8)
    owner = np.arange(n) // 5
    shift, scale = np.float32([127.5]), np.float32([1 / 127.5])
    source = Source("noise", "image", x, rng.integers(0, 10, n), 10, None, owner, None, shift, scale)
    data = weft.federate(source, partition="natural", clients=clients, validation=0.0)
    budget = {"cohort": cohort, "rounds": rounds, "evaluate_every": rounds, "checkpoint_every": rounds}
    return weft.run(method, data, model=model, batch_size=5, out=out or None, workers=1, **(budget | given))


def population(clients: int) -> dict[str, float]:
    """What a run of that many clients, 100 of them in a round, leaves behind and takes."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        result = run("fedavg", clients, 100, 4, "logistic", str(out))
        costs = {k: v / 4 for k, v in result.totals.items()}
        return {
            "peak": peak(),
            "manifest": float((out / "manifest.json").stat().st_size),
            "metrics": float((out / "metrics.parquet" / "round-000004.parquet").stat().st_size),
            "status": float((out / "status.json").stat().st_size),
            "evaluation": 4 * costs["evaluation_seconds"],
            "checkpoint seconds": 4 * costs["checkpoint_seconds"],
        }


def state(clients: int) -> dict[str, float]:
    """What SCAFFOLD keeps, a model for each client that ever had a turn: on disk, and in memory with a checkpoint."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        result = run("scaffold", clients, 100, 40, "logistic", str(out), checkpoint_every=20)
        sizes = [p.stat().st_size for p in sorted((out / "checkpoint").glob("round-*/state.safetensors"))]
        model = 4.0 * sum(x.numel() for x in result.federation.net.init(0).values())
        seen = float((result.federation.turns > 0).sum())
        seconds = result.totals["checkpoint_seconds"] / sizes[0]  # of the first: that of the last round is not counted
        return {
            "seen": seen,
            "checkpoint": float(sizes[1]),
            "seconds of a byte": seconds,
            "model": model,
            "peak": peak(),
        }


def seats(clients: int) -> dict[str, float]:
    """A round whose clients are all one program."""
    result = run("fedavg", 1000, clients, 2, "cnn-small", chunk=clients)
    model = 4.0 * sum(x.numel() for x in result.federation.net.init(0).values())
    return {"peak": peak(), "model": model}


def processes(word: str) -> dict[str, float]:
    """A process that has imported Weft, and what a place for clients needs beside it."""
    import weft.experiment.run  # noqa: F401

    if word != "weft":
        __import__(word)
    return {"peak": peak()}


def accounting() -> dict[str, float]:
    """Weighing an upload of 4 MB, and keeping a privacy ledger."""
    import torch
    from dp_accounting import GaussianDpEvent, PoissonSampledDpEvent, SelfComposedDpEvent
    from dp_accounting.rdp import RdpAccountant

    from weft.wire import Quantise, TopK, weigh

    size = 2**20
    one = {"w": torch.randn(size)}
    quantised, sparse = Quantise(16), TopK(0.01)
    found = {
        "seconds to weigh a dense upload": best(lambda: weigh(one), 0.5),
        "seconds to weigh a quantised upload": best(lambda: weigh(one, quantised), 1),
    }
    arrived = sparse.apply(one, sparse.init(one), torch.tensor(1))[0]
    found["seconds to weigh a sparse upload"] = best(lambda: weigh(arrived, sparse), 1)

    def epsilon(clients: int, wanted: int) -> float:
        ledger = RdpAccountant()
        sampled = PoissonSampledDpEvent(wanted / clients, GaussianDpEvent(1.0))
        ledger.compose(SelfComposedDpEvent(sampled, 1000))
        return float(ledger.get_epsilon(0.1 / clients))

    for clients, wanted in ((10**4, 100), (10**6, 1000), (10**8, 10_000)):
        found[f"epsilon of {clients}"] = epsilon(clients, wanted)
    return found | {"seconds of a ledger": best(lambda: epsilon(10**6, 1000), 1)}


def status() -> dict[str, float]:
    """What telling the status costs a round, and a node in the file."""
    from weft.experiment.status import Status

    told = Status(None, {"clients": 10**6}, 10**6, local=False)
    ids = list(range(1000))
    for k in range(500):
        told.node(f"node {k}", "training")

    def one() -> None:
        told.round(1, ids)
        told.phase("evaluating")
        told.phase("checkpoint")
        told.done(1, {"test/global/accuracy": 0.5, "run/bytes_up": 1.0})

    text = json.dumps(told.told())
    return {
        "seconds of a round": best(one, 0.5),
        "seconds of a file": best(lambda: json.dumps(told.told()), 0.5),
        "bytes of a node": len(text) / 500,
    }


GROUPS: dict[str, Callable[..., dict[str, float]]] = {
    "arithmetic": arithmetic,
    "drawing": drawing,
    "population": lambda n: population(int(n)),
    "state": lambda n: state(int(n)),
    "seats": lambda n: seats(int(n)),
    "processes": processes,
    "accounting": accounting,
    "status": status,
}


def ask(*words: str) -> dict[str, float]:
    """One group, measured in a process of its own."""
    said = subprocess.run([sys.executable, __file__, "--only", *words], capture_output=True, text=True)
    if said.returncode:
        sys.exit(f"{' '.join(words)}: {said.stderr}")
    found: dict[str, float] = json.loads(said.stdout.splitlines()[-1])
    print(*words, found, file=sys.stderr)
    return found


def kept() -> dict[str, float]:
    """What grows with a kept state."""
    a, b = ask("state", "200"), ask("state", "4000")
    grown = {name: (b[name] - a[name]) / (b["seen"] - a["seen"]) for name in ("checkpoint", "peak")}
    return {**grown, "seconds of a byte": b["seconds of a byte"], "model": b["model"]}


def slope(group: str, low: int, high: int) -> dict[str, float]:
    """How much each figure of a group grows with a client; the model's size is no such figure."""
    a, b = ask(group, str(low)), ask(group, str(high))
    return {name: b[name] if name == "model" else (b[name] - a[name]) / (high - low) for name in a}


PARTS: dict[str, Callable[[], dict[str, float]]] = {
    "arithmetic": lambda: ask("arithmetic"),
    "drawing": lambda: ask("drawing"),
    "population": lambda: slope("population", 2000, 20_000),
    "state": kept,
    "seats": lambda: slope("seats", 100, 500),
    "processes": lambda: {word: ask("processes", word)["peak"] for word in ("weft", "ray", "flwr.clientapp")},
    "accounting": lambda: ask("accounting"),
    "status": lambda: ask("status"),
}


def main() -> None:
    words = sys.argv[1:]
    if words[:1] == ["--only"]:
        print(json.dumps(GROUPS[words[1]](*words[2:])))
        return
    file = HERE / "measured.json"
    found = json.loads(file.read_text()) if file.exists() else {}
    for part in words or PARTS:
        found[part] = PARTS[part]()
    file.write_text(json.dumps({part: found[part] for part in PARTS if part in found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
