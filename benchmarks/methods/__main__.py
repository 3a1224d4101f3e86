"""Run the comparison, or a part of it: python -m benchmarks.methods [--part 1/2] [--settings ...] [--methods ...]."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import torch
from benchmarks.methods.trials import Pair, pairs, work

from weft.core.errors import SettingError


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.methods", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/methods"), help="where results are and go")
    parser.add_argument("--settings", nargs="*", default=(), metavar="NAME", help="default: all")
    parser.add_argument("--methods", nargs="*", default=(), metavar="NAME", help="default: all")
    parser.add_argument("--part", default="1/1", metavar="I/N", help="the I-th of N parts, for N processes or machines")
    parser.add_argument("--ray", type=int, default=0, metavar="N", help="N parts as tasks of a Ray cluster")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="begin no run after so many seconds")
    args = parser.parse_args(argv)
    try:
        if args.ray:
            return over_ray(args)
        i, slash, n = args.part.partition("/")
        if not (slash and i.isdigit() and n.isdigit()):
            raise SettingError(f"part = {args.part!r} is no part: write it like 1/2")
        return go(pairs(args.settings, args.methods, (int(i), int(n))), args.out, args.seconds)
    except SettingError as error:
        print(f"benchmarks.methods: {error}", file=sys.stderr)
        return 2


def go(chosen: list[Pair], out: Path, seconds: float) -> int:
    """Run on one core until all is done or the time is up."""
    torch.set_num_threads(1)
    began = time.monotonic()
    for line in work(chosen, out):
        print(line, flush=True)
        if time.monotonic() - began > seconds:
            break
    return 0


def over_ray(args: argparse.Namespace) -> int:
    """The parts as tasks of one core each; `out` must be a folder that all machines see."""
    import ray

    ray.init(ignore_reinit_error=True)
    task = ray.remote(num_cpus=1)(go)
    parts = [pairs(args.settings, args.methods, (i + 1, args.ray)) for i in range(args.ray)]
    ray.get([task.remote(part, args.out.resolve(), args.seconds) for part in parts])
    return 0


if __name__ == "__main__":
    sys.exit(main())
