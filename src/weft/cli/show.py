"""The commands that show what there is: methods, data, models, explanations, reports, partitions."""

from __future__ import annotations

import argparse
from pathlib import Path

from weft.cli.chosen import made, prepared
from weft.cli.words import named


def methods(args: argparse.Namespace, own: dict[str, str]) -> None:
    """List methods."""
    from weft.core.registry import REGISTRY
    from weft.report.terminal import print_rows

    rows = [(e.name, e.family, e.summary.partition(": ")[2] or e.summary) for e in REGISTRY.values()]
    print_rows(("method", "family", "what it is"), sorted(rows, key=lambda r: (r[1], r[0])))
    print("formulas, defaults, deviations, and the laws that do not apply: weft explain METHOD")


def data(args: argparse.Namespace, own: dict[str, str]) -> None:
    """List data sets and partitions."""
    from weft.experiment.sources import listing
    from weft.report.terminal import print_rows

    for title, rows in listing():
        print_rows(title, rows)


def models(args: argparse.Namespace, own: dict[str, str]) -> None:
    """List models."""
    from weft.models import catalogue
    from weft.report.terminal import print_rows

    print_rows(("model", "for", "what it is"), [(m.name, m.kind, m.about) for m in catalogue()])


def explain(args: argparse.Namespace, own: dict[str, str]) -> None:
    """Explain a method."""
    from weft.experiment.explain import explain

    data, settings, _ = prepared(args)
    name, written = named(args.method)
    print(explain(made(name, own | written), data, settings))


def report(args: argparse.Namespace, own: dict[str, str]) -> None:
    """Write a report from run folders."""
    from weft.report.page import write_report

    runs = [Path(r) for r in args.runs]
    print(write_report(runs, Path(args.out) if args.out else runs[0] / "report.html"))


def partition(args: argparse.Namespace, own: dict[str, str]) -> None:
    """Make a partition file, or verify one."""
    from weft.experiment.sources import make_partition, verify_partition

    data, *_ = prepared(args)
    print((make_partition if args.action == "make" else verify_partition)(data, Path(args.out)))
