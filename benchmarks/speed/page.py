"""Write README.md, table.csv and operations.csv from what run.py and limits.py found: page.py [HOME] [FOLDER]."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, median
from typing import Any

from workloads import WORKLOADS, Workload

Row = dict[str, Any]
CLOSE = 0.03
"""Accuracies further apart than this, after the same rounds, are not comparable."""


def read(home: Path) -> list[Row]:
    """All blocks there are."""
    return [json.loads(place.read_text()) for place in sorted((home / "results").glob("*/*.json"))]


def read_limits(home: Path) -> list[Row]:
    """What bounds a round, one entry for each workload and precision."""
    return [json.loads(place.read_text()) for place in sorted((home / "limits").glob("*.json"))]


def table(blocks: Sequence[Row], workloads: Mapping[str, Workload] = WORKLOADS) -> list[Row]:
    """One row for each peer, workload and precision, in the order of the workloads, the quickest first."""
    found: dict[tuple[str, str, str], list[Row]] = {}
    for b in blocks:
        found.setdefault((b["workload"], b["precision"], b["peer"]), []).append(b)
    rows = [_row(key, them, found) for key, them in found.items()]
    for row in rows:
        w = workloads.get(row["workload"])
        bf16 = row["precision"] == "bf16"
        row["target"] = (w.targets_bf16 if bf16 else w.targets).get(row["peer"]) if w else None
    order = list(workloads)
    return sorted(rows, key=lambda r: (order.index(r["workload"]), r["precision"] != "fp32", r.get("median", 1e9)))


def _row(key: tuple[str, str, str], them: list[Row], found: Mapping[tuple[str, str, str], list[Row]]) -> Row:
    workload, precision, peer = key
    row: Row = {"workload": workload, "precision": precision, "peer": peer, "remarks": []}
    good = [b for b in them if "error" not in b]
    if len(good) < len(them):
        last = next(b for b in reversed(them) if "error" in b)
        row["remarks"].append(f"{len(them) - len(good)} of {len(them)} blocks failed: {last['error']}")
    if not good:
        return row
    seconds = [s for b in good for s in b["seconds"]]
    row |= {"median": median(seconds), "min": min(seconds), "max": max(seconds), "rounds": len(seconds)}
    row |= {"blocks": len(good), "updates_per_second": good[0]["settings"]["updates"] / row["median"]}
    row |= {"memory_mib": max(b["memory_mib"] for b in good), "accuracy": mean(b["accuracy"] for b in good)}
    row |= {"notes": good[-1]["notes"], "versions": good[-1]["versions"]}
    ours = {b["block"]: b for b in found.get((workload, precision, "weft"), []) if "error" not in b}
    if ours:
        row["ratio"] = row["median"] / median(s for b in ours.values() for s in b["seconds"])
        each = [median(b["seconds"]) / median(ours[b["block"]]["seconds"]) for b in good if b["block"] in ours]
        row |= {"ratio_min": min(each), "ratio_max": max(each)} if each else {}
    for b in good:
        for what in ("examples", "steps"):
            if b[what] != b["expected"][what]:
                row["remarks"].append(f"{what} differ: {sum(b[what]):,} for {sum(b['expected'][what]):,}")
                break
    row["remarks"] = list(dict.fromkeys(row["remarks"]))
    standard = [b["accuracy"] for b in found.get((workload, precision, "sequential"), []) if "error" not in b]
    if standard and abs(apart := row["accuracy"] - mean(standard)) > CLOSE:
        row["remarks"].append(f"accuracy is {100 * apart:+.1f} points from the sequential loop's")
    return row


COLUMNS = (
    "workload", "precision", "peer", "median", "min", "max", "rounds", "blocks", "updates_per_second", "memory_mib",
    "accuracy", "ratio", "ratio_min", "ratio_max", "target", "remarks",
)  # fmt: skip


def write_csv(rows: Sequence[Row], place: Path, columns: Sequence[str] = COLUMNS) -> None:
    """All rows and figures."""
    with place.open("w", newline="") as file:
        out = csv.DictWriter(file, columns, extrasaction="ignore", lineterminator="\n")
        out.writeheader()
        for row in rows:
            rounded = {k: float(f"{v:.6g}") if isinstance(v, float) else v for k, v in row.items()}
            out.writerow(rounded | ({"remarks": "; ".join(row["remarks"])} if "remarks" in row else {}))


def operations(limits: Sequence[Row]) -> list[Row]:
    """The operations of a round, one row for each."""
    return [
        {k: told[k] for k in ("workload", "precision")} | dict(zip(OPERATION, each, strict=True))
        for told in limits
        for each in told["operations"]
    ]


OPERATION = ("operation", "seconds", "calls")


def page(
    rows: Sequence[Row],
    blocks: Sequence[Row],
    limits: Sequence[Row] = (),
    workloads: Mapping[str, Workload] = WORKLOADS,
) -> str:
    """The page in Markdown."""
    lines = [
        "# Speed", "",
        "Time of a training round, from the server's model to its next one, without evaluation. All peers have the",
        "same data, clients, cohorts, first weights, batch sizes and local epochs; examples and steps are counted in",
        "each and compared. Ratio: median round time of the row divided by Weft's, with the least and greatest of",
        "the blocks' own ratios; above 1, Weft is quicker. Accuracy: after the same rounds on the test data, of the",
        "shared model; for Ditto and S7 of the clients' own models. In S7 an update is the judgement of one model.",
        "`make bench-speed` runs it again, `table.csv` has all figures.", "",
        "What bounds a round was measured apart from the table, each workload in a minute of its own: this machine's",
        "ceilings (a matrix product of 2048 and a copy of 64 MiB, on all cores), the floating-point operations that",
        "are counted and the bytes that have to come from memory or go there at the least (the model of a client once",
        "in and once out, each example once, as it is stored), and the time that torch's operations and machine code",
        "of a round take one after the other on one core, without what is between them; `operations.csv` has them. The",
        "machine is quicker in one minute than in another; so what a target asks for is told from the table, and how",
        "much quicker a round could be from the minute of its own.", "",
        *_machines(blocks), "",
    ]  # fmt: skip
    for name, w in workloads.items():
        for precision in ("fp32", "bf16"):
            here = [r for r in rows if (r["workload"], r["precision"]) == (name, precision)]
            if here:
                lines += _section(w, precision, here, blocks, rows)
                lines += [
                    line
                    for told in limits
                    if (told["workload"], told["precision"]) == (name, precision)
                    for line in _bounds(told, here)
                ]
    return "\n".join(lines).rstrip() + "\n"


def _machines(blocks: Sequence[Row]) -> list[str]:
    lines = ["## Machine", ""]
    for told in dict.fromkeys(json.dumps(b["machine"], sort_keys=True) for b in blocks):
        m = json.loads(told)
        loads = [b["load_before"] for b in blocks if json.dumps(b["machine"], sort_keys=True) == told]
        days = sorted({b["started"][:10] for b in blocks})
        lines.append(
            f"- {m['processor']}, {m['cores']} cores used ({', '.join(m['instructions'])}), {m['memory_gib']} GiB, "
            f"{m['system']}; {days[0]} to {days[-1]}; load average before a block: median {median(loads):.1f}, "
            f"greatest {max(loads):.1f}"
        )
    return lines


def _section(w: Workload, precision: str, here: list[Row], blocks: Sequence[Row], rows: Sequence[Row]) -> list[str]:
    name = f"{w.name} in bf16" if precision == "bf16" else w.name
    first = next((b for b in blocks if b["workload"] == w.name and b["precision"] == precision), None)
    epochs = f"{w.epochs} epoch{'s' * (w.epochs > 1)}"
    settings = f"{w.about[0].upper()}{w.about[1:]}. Batch {w.batch_size}, {epochs}, SGD with lr {w.lr}"
    if first:
        s = first["settings"]
        settings += f"; blocks of {s['rounds']} rounds after {s['warmup']} untimed ones; data: {first['data']}"
    lines = [
        f"## {name}", "", f"{settings}.", "",
        "| peer | median s | min | max | client updates/s | peak MiB | accuracy | ratio to Weft | target |",
        "| --- | --: | --: | --: | --: | --: | --: | --: | --: |",
    ]  # fmt: skip
    more = [r for r in rows if r["workload"] == w.name and r["precision"] == "fp32"] if precision == "bf16" else []
    ours = next((r["median"] for r in here if r["peer"] == "weft" and "median" in r), None)
    for r in [*here, *more]:
        if "median" not in r:
            lines.append(f"| {r['peer']} | | | | | | | | |")
            continue
        label = r["peer"] if r["precision"] == precision else f"{r['peer']} (fp32)"
        times = " | ".join(f"{r[k]:.4g}" for k in ("median", "min", "max"))
        ratio = f"{r['median'] / ours:.2f}" if ours else ""
        if r["precision"] == precision and r["blocks"] > 1 and "ratio_min" in r and r["peer"] != "weft":
            ratio += f" ({r['ratio_min']:.2f} to {r['ratio_max']:.2f})"
        target = f"{r['target']:g}" if r["target"] and r["precision"] == precision else ""
        lines.append(
            f"| {label} | {times} | {r['updates_per_second']:.4g} | {r['memory_mib']:.0f} | "
            f"{100 * r['accuracy']:.2f} % | {ratio} | {target} |"
        )
    lines.append("")
    for r in here:
        said = [*r["remarks"]]
        if "versions" in r:
            said += [r["notes"], ", ".join(f"{k} {v}" for k, v in r["versions"].items())]
        lines.append(f"- {r['peer']}: {'; '.join(said)}")
    return [*lines, ""]


CORES = 2


def _bounds(told: Row, here: Sequence[Row]) -> list[str]:
    """What bounds a round, and which missed targets are out of reach for that."""
    runs, best = told["runs"], told["ceilings"]
    most = runs * max(told["flops"] / best["flops"], told["bytes"] / best["bytes"])
    alone = runs * told["operations_seconds"] / CORES
    parts = ", ".join(f"{part} {_time(seconds)}" for part, seconds in told["parts"].items() if seconds > 1e-4)
    largest = ", ".join(
        f"`{name}` {seconds / told['operations_seconds']:.0%}" for name, seconds, _ in told["operations"][:5]
    )
    each = f"a round of each of {runs} runs" if runs > 1 else "a round"
    crowd = f", on which work takes {told['crowding']:.2f} times as long as on one alone" if "crowding" in told else ""
    lines = [
        f"What bounds it: {each} is {told['flops'] / 1e9:.3g} GFLOP and moves {told['bytes'] / 1e6:.3g} MB at the "
        f"least. At {best['flops'] / 1e9:.0f} GFLOP/s and {best['bytes'] / 1e9:.0f} GB/s that takes {_time(most)}; "
        f"its operations by themselves take {_time(alone)} on {CORES} cores that never wait "
        f"({largest}). In the same minute Weft took {_time(runs * told['seconds'])} on {CORES} cores{crowd}"
        + (f" ({parts})." if parts and runs == 1 else "."),
        "",
    ]
    for row in here:
        if not row.get("target") or "ratio" not in row or row["ratio"] >= row["target"]:
            continue
        need, took = row["target"] / row["ratio"], runs * told["seconds"]
        why = f"- Not reached: {row['target']:g} times {row['peer']} would be {need:.2g} times as quick as Weft is. "
        if need > took / most:
            why += f"The ceilings allow {took / most:.2g} times."
        elif need > took / alone:
            why += (
                f"Its operations by themselves would be {took / alone:.2g} times as quick: it needs other "
                "operations, not less between them."
            )
        else:
            why += f"So much is between the operations, which by themselves would be {took / alone:.2g} times as quick."
        lines.append(why)
    return [*lines, ""] if lines[-1] else lines


def _time(seconds: float) -> str:
    return f"{seconds:.3g} s" if seconds >= 1 else f"{1000 * seconds:.3g} ms"


def main() -> None:
    home = Path(sys.argv[1]) if len(sys.argv) > 1 else Path("runs/speed")
    folder = Path(sys.argv[2]) if len(sys.argv) > 2 else Path(__file__).parent
    blocks = read(home)
    if not blocks:
        raise SystemExit(f"{home} holds no results: run benchmarks/speed/run.py first")
    rows = table(blocks)
    limits = read_limits(home)
    write_csv(rows, folder / "table.csv")
    write_csv(operations(limits), folder / "operations.csv", ("workload", "precision", *OPERATION))
    (folder / "README.md").write_text(page(rows, blocks, limits))


if __name__ == "__main__":
    main()
