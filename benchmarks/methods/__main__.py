"""Run the comparison, or a part of it: python -m benchmarks.methods [--part 1/2] [--settings ...] [--methods ...]."""

from __future__ import annotations

import argparse
import sys
import time
from multiprocessing import get_context
from pathlib import Path

from benchmarks.methods.claims import doubted
from benchmarks.methods.table import table
from benchmarks.methods.trials import Pair, go, pairs

from weft.core.errors import SettingError


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.methods", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/methods"), help="where results are and go")
    parser.add_argument("--settings", nargs="*", default=(), metavar="NAME", help="default: all")
    parser.add_argument("--methods", nargs="*", default=(), metavar="NAME", help="default: all")
    parser.add_argument("--part", default="1/1", metavar="I/N", help="the I-th of N parts, for N processes or machines")
    parser.add_argument("--processes", type=int, default=1, metavar="N", help="N processes on this machine")
    parser.add_argument("--longer", action="store_true", help="instead: longer runs of what is not as papers say")
    parser.add_argument("--ray", action="store_true", help="tasks of one core on a Ray cluster that sees `out`")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="begin no run after so many seconds")
    args = parser.parse_args(argv)
    try:
        i, slash, n = args.part.partition("/")
        if not (slash and i.isdigit() and n.isdigit()):
            raise SettingError(f"part = {args.part!r} is no part: write it like 1/2")
        chosen = pairs(args.settings, args.methods, (int(i), int(n)))
        if args.longer:
            chosen = [pair for pair in doubted(table(args.out)) if pair in chosen]
        until = time.time() + args.seconds
        if args.ray:
            over_ray(chosen, args.out.resolve(), until, args.longer)
        elif args.processes > 1:
            with get_context("spawn").Pool(args.processes) as pool:
                pool.starmap(go, [([pair], args.out, until, args.longer) for pair in chosen], chunksize=1)
        else:
            go(chosen, args.out, until, args.longer)
    except SettingError as error:
        print(f"benchmarks.methods: {error}", file=sys.stderr)
        return 2
    return 0


def over_ray(chosen: list[Pair], out: Path, until: float, longer: bool) -> None:
    """Each method on each setting as a task of one core."""
    import ray

    ray.init(ignore_reinit_error=True)
    task = ray.remote(num_cpus=1)(go)
    ray.get([task.remote([pair], out, until, longer) for pair in chosen])


if __name__ == "__main__":
    sys.exit(main())
