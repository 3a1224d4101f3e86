"""The tables of docs/scale.md, from measured.json and from the simulation.

python scripts/scale/page.py docs/scale.md
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).parent))

from simulate import MOST, Outcome, cases, simulate

from weft.report.number import number

MODEL = 4e6  # bytes of an upload: a million numbers in float32
ROUND = 180.0  # seconds that a round may take
MEMORY, DISK, NETWORK = 64e9, 4e12, 1.25e9  # of a server: bytes, bytes, bytes per second
ROUNDS = 1000
HEARTBEAT = 30.0  # seconds between two heartbeats of a Flower node, by default
ANSWERS = 10_000  # requests per second that a SuperLink may be able to answer; assumed
SIZES = {10**4: 100, 10**6: 1000, 10**8: 10_000}  # clients -> reports of a round
EXTRA = 1.3  # invited for each report
NAMES = {10**4: "10⁴", 10**6: "10⁶", 10**8: "10⁸"}


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table whose first column is words."""
    lines = [head, ["---"] + ["--:"] * (len(head) - 1), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines).replace("\u202f", " ")


def tiny(seconds: float) -> str:
    """A duration far below a second."""
    for unit, scale in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6), ("ns", 1e-9), ("ps", 1e-12)):
        if seconds >= scale:
            value = seconds / scale
            return f"{value:.0f} {unit}" if value >= 10 else f"{value:.2g} {unit}"
    return "0 s"


def measured(m: dict[str, Any]) -> str:
    """What a client costs."""
    a, p, s = m["arithmetic"], m["population"], m["state"]
    rows = [
        ("server, for each byte of an upload: unpack, check, sum", tiny(a["unpack"] + a["finite"] + a["sum"])),
        ("the same, quantised to 16 levels (for each byte before it)", tiny(_quantised(a))),
        ("the same, the largest 1 % (for each byte before it)", tiny(_sparse(a))),
        ("median of 16 uploads, for each byte of one", tiny(a["median"])),
        ("weighing a quantised upload of 4 MB", tiny(m["accounting"]["seconds to weigh a quantised upload"])),
        ("drawing the cohort, for each client of a population of 10⁶", tiny(m["drawing"]["cohort of 1,000,000"])),
        ("the same of 10⁷", tiny(m["drawing"]["cohort of 10,000,000"])),
        ("drawing the batches of one client (50 examples)", tiny(m["drawing"]["batches"])),
        ("judging one client (5 examples, logistic regression)", tiny(p["evaluation"])),
        ("memory for a client of the population", number(p["peak"], "B")),
        ("manifest, for each client", number(p["manifest"], "B")),
        ("metrics, for each client that is judged in a round", number(p["metrics"], "B")),
        ("`status.json`, for each node up to 500", number(m["status"]["bytes of a node"], "B")),
        ("telling the status, each round", tiny(m["status"]["seconds of a round"])),
        ("kept state of SCAFFOLD, on disk, in models", f"{s['checkpoint'] / s['model']:.2f}"),
        ("the same, peak of memory with a checkpoint, in models", f"{s['peak'] / s['model']:.1f}"),
        ("writing a checkpoint, for each byte kept", tiny(s["seconds of a byte"])),
        ("memory of a seat in a batched round, in models", f"{m['seats']['peak'] / m['seats']['model']:.0f}"),
        ("memory of a process that has imported Weft", number(m["processes"]["weft"], "B")),
        ("the same with Flower's client, with Ray", f"{number(m['processes']['flwr.clientapp'], 'B')}, "
         f"{number(m['processes']['ray'], 'B')}"),
        ("a privacy ledger of 1000 rounds", tiny(m["accounting"]["seconds of a ledger"])),
    ]  # fmt: skip
    return table(["what", "costs"], rows)


def _quantised(a: dict[str, float]) -> float:
    return a["unpack quantised to 16 levels"] + a["finite"] + a["sum"]


def _sparse(a: dict[str, float]) -> float:
    return a["unpack the largest 1 %"] + a["finite"] + a["sum"]


class Need(NamedTuple):
    """What a server needs, and its share of what it has."""

    text: str
    share: float


def seconds(value: float, limit: float = ROUND) -> Need:
    return Need(number(value, "s"), value / limit)


def size(value: float, limit: float) -> Need:
    return Need(number(value, "B"), value / limit)


def deployed(m: dict[str, Any], clients: int) -> dict[str, Need]:
    """Needs of a server whose clients are elsewhere."""
    a, wanted = m["arithmetic"], SIZES[clients]
    sent = wanted * MODEL
    draw = m["drawing"]["cohort of 1,000,000" if clients <= 10**6 else "cohort of 10,000,000"]
    beats = clients * MOST / HEARTBEAT
    dense = a["unpack"] + a["finite"] + a["sum"]
    return {
        "network, up and down": seconds(sent * (1 + EXTRA) / NETWORK),
        "CPU, mean (one core)": seconds(sent * dense),
        "CPU, quantised mean (one core)": seconds(sent * _quantised(a)),
        "CPU, median (one core)": seconds(sent * (a["unpack"] + a["finite"] + a["median"])),
        "memory, mean (streamed, one block)": size(2**28 + 3 * MODEL, MEMORY),
        "memory, median (every upload)": size(sent, MEMORY),
        "drawing the cohort (one core)": seconds(2 * clients * draw),
        "memory, who has which examples": size(clients * m["population"]["peak"], MEMORY),
        "manifest": size(clients * m["population"]["manifest"], DISK),
        "metrics of 1000 rounds, cohort judged": size(ROUNDS * wanted * m["population"]["metrics"], DISK),
        "heartbeats at the busiest hour": Need(f"{number(beats, 'count')}/s", beats / ANSWERS),
    }


def simulated(m: dict[str, Any], clients: int) -> dict[str, Need]:
    """Needs of one machine that plays the clients too."""
    wanted, state = SIZES[clients], m["state"]
    kept = clients * MODEL * state["checkpoint"] / state["model"]
    held = clients * MODEL * state["peak"] / state["model"]
    return {
        "memory, cohort in one program": size(wanted * MODEL * m["seats"]["peak"] / m["seats"]["model"], MEMORY),
        "memory, SCAFFOLD's kept state with a checkpoint": size(held, MEMORY),
        "disk, the two checkpoints of SCAFFOLD": size(2 * kept, DISK),
        "writing one (one core)": seconds(kept * state["seconds of a byte"]),
        "judging everybody (one core)": seconds(clients * m["population"]["evaluation"]),
        "metrics of 1000 rounds, everybody judged": size(ROUNDS * clients * m["population"]["metrics"], DISK),
    }  # fmt: skip


def needs(m: dict[str, Any], kind: Any) -> str:
    """A table of needs by number of clients; what a server has not is bold, with how many times over."""
    by = {clients: kind(m, clients) for clients in SIZES}
    rows = []
    for name in by[10**4]:
        cells = []
        for clients in SIZES:
            need = by[clients][name]
            cells.append(need.text if need.share <= 1 else f"**{need.text}** ({_times(need.share)} ×)")
        rows.append([name, *cells])
    first = [max(by[clients].items(), key=lambda item: item[1].share) for clients in SIZES]
    rows.append(["largest share of what there is", *(f"{name}: {_share(need.share)}" for name, need in first)])
    return table(["", *(f"{NAMES[c]} clients, {k:,} a round" for c, k in SIZES.items())], rows)


def _times(share: float) -> str:
    return f"{share:.1f}" if share < 10 else f"{share:,.0f}"


def _share(share: float) -> str:
    return f"{100 * share:.2g} %" if share <= 1 else f"{_times(share)} ×"


def ledger(m: dict[str, Any]) -> str:
    """What the same noise costs."""
    row = [f"{m['accounting'][f'epsilon of {clients}']:.2f}" for clients in SIZES]
    return table(["", *(f"{NAMES[c]} clients, {k:,} a round" for c, k in SIZES.items())], [["ε", *row]])


def rounds(outcomes: dict[str, Outcome]) -> str:
    """How the simulated rounds went."""

    def percent(share: float) -> str:
        return f"{100 * share:.1f} %" if share < 0.1 else f"{100 * share:.0f} %"

    rows = [
        [
            name,
            f"{o.available[0]:,.0f} to {o.available[1]:,.0f}",
            f"{o.per_day:,.0f}",
            percent(o.lost),
            f"{o.median:,.0f} s, {o.slowest:,.0f} s",
            percent(o.reported),
            percent(o.wasted),
            percent(o.slow),
            percent(o.reached),
            f"{o.most:,}",
            number(o.bytes_day, "B"),
        ]
        for name, o in outcomes.items()
    ]
    head = ["", "available", "rounds a day", "lost", "median, 95 %", "reports per invitation", "work wasted", "slow"]
    return table([*head, "reached", "most", "bytes up a day"], rows)


def parts() -> dict[str, str]:
    """Marker -> what stands between it."""
    m = json.loads((Path(__file__).parent / "measured.json").read_text())
    return {
        "measured": measured(m),
        "deployed": needs(m, deployed),
        "simulated": needs(m, simulated),
        "ledger": ledger(m),
        "rounds": rounds({name: simulate(given) for name, given in cases().items()}),
    }


def filled(page: str, found: dict[str, str]) -> str:
    """The page with these parts."""
    for name, text in found.items():
        page, count = re.subn(
            rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", lambda m, t=text: f"{m[1]}{t}\n{m[2]}", page, flags=re.S
        )
        assert count == 1, f"the page has no part {name}"
    return page


if __name__ == "__main__":
    path = Path(sys.argv[1])
    path.write_text(filled(path.read_text(), parts()))
