"""The commands that train: run, compare, sweep."""

from __future__ import annotations

import argparse
import dataclasses
import itertools
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from weft.cli.chosen import made, prepared, takes
from weft.cli.words import named
from weft.core.errors import SettingError


def run(args: argparse.Namespace, own: dict[str, str]) -> None:
    """Train one method."""
    from weft.data.optional import optional
    from weft.experiment.run import Run
    from weft.experiment.sources import federated
    from weft.report.page import write_report
    from weft.report.read import read_runs
    from weft.report.terminal import print_comparison

    data, settings, method = prepared(args)
    if args.resume and not args.out:
        raise SettingError("resume = True needs the folder of the run to go on with: add --out runs/NAME")
    name, written = named(args.method or method.get("name", ""))
    if not name:
        raise SettingError("no method is named: write `weft run fedavg`, or name it in the configuration file")
    options = {k: v for k, v in method.items() if k != "name"} if method.get("name") == name else {}
    wanted = made(name, options | own | written)
    out = Path(args.out) if args.out else _free(name)
    with ExitStack() as stack:
        divided, places = federated(data), None
        if settings.executor == "flower":
            optional("flwr", extra="flower", use="executor = 'flower'")
            from weft.deploy.network import on_this_machine

            how = {"deadline": args.deadline, "min_clients": args.min_clients, "plugins": args.plugin}
            home = out.with_name(f"{out.name}-nodes")
            places = stack.enter_context(
                on_this_machine(home, wanted, data, divided, settings, nodes=args.nodes, **how)
            )
        run = Run.prepare(
            wanted, divided, settings, None, out, args.resume, args.tracker, args.profile, elsewhere=places
        )
        run.go(stack.enter_context(_progress(args, name, settings.rounds)))
    print_comparison(read_runs([out]))
    if args.profile:
        print("\n".join(run.profile()))
    print(f"report: {write_report([out], out / 'report.html')}")


def compare(args: argparse.Namespace, own: dict[str, str]) -> None:
    """Train several methods on the same data with the same budget."""
    data, settings, _ = prepared(args)
    methods = {}
    for word in args.methods:
        name, options = named(word)
        methods[word.replace(":", "_").replace("=", "").replace(",", "_")] = made(name, own | options)
    _side_by_side(args, methods, data, dict.fromkeys(methods, settings))


def sweep(args: argparse.Namespace, own: dict[str, str]) -> None:
    """Search settings of a method, choosing on validation data."""
    import numpy as np

    from weft.experiment.compare import validation_accuracy
    from weft.experiment.settings import RunSettings, from_mapping

    data, settings, _ = prepared(args)
    if not data.validation:
        raise SettingError("validation = 0 leaves a search nothing to choose by: use a share such as 0.1")
    grid: dict[str, list[str]] = {}
    for word in args.grid:
        name, equals, values = word.partition("=")
        if not equals or not values:
            raise SettingError(f"grid = {word!r} names no values: write it like lr=0.01,0.1")
        grid[name] = values.split(",")
    name, written = named(args.method)
    known, fields = takes(name), [f.name for f in dataclasses.fields(RunSettings)]
    of_run = [k for k in grid if k in fields and k not in known]
    methods, budgets = {}, {}
    for values in itertools.product(*grid.values()):
        chosen = dict(zip(grid, values, strict=True))
        label = name + "_" + "_".join(f"{k}{v}" for k, v in chosen.items())
        budgets[label] = from_mapping(RunSettings, vars(settings) | {k: chosen.pop(k) for k in of_run})
        methods[label] = made(name, own | written | chosen)
    trials = _side_by_side(args, methods, data, budgets)
    scores = {
        label: float(np.mean([validation_accuracy(t.path) for t in trials if t.label == label])) for label in methods
    }
    best = max(scores, key=lambda label: scores[label])
    print(f"chosen on validation: {best} (best validation accuracy {scores[best]:.4f}, {args.seeds} seed(s) of each)")


def _side_by_side(args: argparse.Namespace, methods: dict[str, Any], data: Any, settings: dict[str, Any]) -> Any:
    from weft.experiment.compare import compare, table, write_csv
    from weft.experiment.sources import federated
    from weft.report.page import write_report
    from weft.report.read import read_runs
    from weft.report.terminal import print_comparison

    out = Path(args.out or f"runs/{args.command}")
    rounds = max(s.rounds for s in settings.values())
    trials = compare(
        methods,
        federated(data),
        settings,
        out,
        seeds=args.seeds,
        together=args.together,
        announce=lambda n: _progress(args, n, rounds),
        say=print,
    )
    write_csv(table(trials), out / "table.csv")
    print_comparison(read_runs([t.path for t in trials]))
    first = [t.path for t in trials if t.seed == 0]
    print(f"table: {out / 'table.csv'}\nreport: {write_report(first, out / 'report.html')}")
    return trials


@contextmanager
def _progress(args: argparse.Namespace, label: str, rounds: int) -> Iterator[Any]:
    """What a run calls after every round."""
    from weft.report.terminal import Progress

    if args.quiet:
        yield None
        return
    with Progress(label, rounds) as line:

        def tell(report: Any) -> None:
            name = next((n for n in report.headline if n == "test/personal/accuracy"), None)
            name = name or next((n for n in report.headline if n.startswith("test/")), None)
            headline = (f"{name.split('/')[1]} test accuracy", report.headline[name]) if name else None
            line.round(report.number, report.clients, report.seconds, headline)

        yield tell


def _free(name: str) -> Path:
    """The first of runs/NAME, runs/NAME-2, ... that is not taken."""
    places = (Path("runs") / (name if i == 1 else f"{name}-{i}") for i in itertools.count(1))
    return next(p for p in places if not p.exists())
