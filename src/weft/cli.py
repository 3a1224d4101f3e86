"""The command line: a thin layer that turns words into calls."""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import itertools
import signal
import sys
import typing
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from weft.core.errors import SettingError


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status: 0, 2 for bad input, 130 after Ctrl-C, 1 when a run had to stop."""
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        return _main(words)
    except SettingError as error:
        print(f"weft: {error}", file=sys.stderr)
        return 2
    except ArithmeticError as error:
        print(f"weft: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        print(f"weft: cannot go on: {error.strerror or error}{where}; what was saved before is whole", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        way = "add --resume" if words[:1] == ["run"] else "give the same command again"
        print(f"weft: stopped; what was saved is whole, and to go on, {way}", file=sys.stderr)
        return 130


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> typing.NoReturn:
        raise SettingError(f"{message} (see `{self.prog} --help`)")


def _parser() -> _Parser:
    from weft.experiment.settings import DataSettings, RunSettings

    top = _Parser(prog="weft", description="Federated learning among clients that are not alike.", allow_abbrev=False)
    top.add_argument("--version", action="store_true", help="print the version")
    commands = top.add_subparsers(dest="command", metavar="COMMAND", parser_class=_Parser)

    def command(name: str, text: str) -> _Parser:
        made = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
        made.add_argument("--plugin", action="append", default=[], metavar="FILE", help="a file that registers methods")
        return made

    def settings(parser: _Parser, kinds: Sequence[type[Any]]) -> None:
        for kind in kinds:
            group = parser.add_argument_group((kind.__doc__ or "").splitlines()[0].rstrip("."))
            for field in dataclasses.fields(kind):
                hint = typing.get_type_hints(kind)[field.name]
                values = typing.get_args(hint) if typing.get_origin(hint) is typing.Literal else None
                said = f" ({', '.join(map(str, values))})" if values else ""
                group.add_argument(
                    "--" + field.name.replace("_", "-"),
                    default=argparse.SUPPRESS,
                    metavar="X",
                    help=f"{field.metadata['help']}{said}; default {field.default!r}",
                )

    def quorum(parser: _Parser) -> None:
        parser.add_argument("--min-clients", type=int, default=0, help="fewest clients of a round; default: half")
        parser.add_argument("--deadline", type=float, default=60.0, help="seconds that a round waits; default 60")

    def several(parser: _Parser, what: str) -> None:
        parser.add_argument("--seeds", type=int, default=1, help=f"runs of each {what}")
        parser.add_argument(
            "--together",
            choices=["auto", "always", "never"],
            default="auto",
            help="runs whose clients do the same but for numbers as one program; auto: if the model is small",
        )
        running(parser)

    def running(parser: _Parser) -> None:
        settings(parser, (DataSettings, RunSettings))
        parser.add_argument("--out", help="run folder")
        parser.add_argument("--quiet", action="store_true", help="no progress lines")
        parser.add_argument("--tracker", action="append", default=[], help="tensorboard, mlflow or wandb")
        parser.add_argument("--config", help="settings as a YAML file; options given here win")
        parser.add_argument("--threads", type=int, help="threads of one operation on the CPU; default: all cores")

    run = command("run", "Train one method.")
    run.usage = "weft run METHOD [options of the method, such as --mu 0.1 --lr 0.05] [options below]"
    run.set_defaults(method=None)  # found among the words left: beside options not known here no positional is safe
    run.add_argument("--resume", action="store_true", help="go on with the run in --out")
    run.add_argument("--profile", action="store_true", help="say at the end where the time went")
    running(run)
    run.add_argument("--nodes", type=int, default=3, help="processes of the executor flower; default 3")
    quorum(run)
    compare = command("compare", "Train several methods on the same data with the same budget.")
    compare.add_argument("methods", nargs="+", metavar="METHOD", help="NAME, or NAME:option=value,option=value")
    several(compare, "method")
    sweep = command("sweep", "Search settings of one method, choosing on validation data only.")
    sweep.add_argument("method")
    sweep.add_argument(
        "--grid",
        nargs="+",
        required=True,
        metavar="NAME=A,B",
        help="values to try, such as lr=0.01,0.1 or batch_size=10,50",
    )
    several(sweep, "setting")
    command("methods", "List methods.")
    command("data", "List data sets and partitions.")
    command("models", "List models.")
    explain = command("explain", "Paper, algorithm, defaults, deviations and wire table of a method.")
    explain.add_argument("method")
    settings(explain, (DataSettings, RunSettings))
    deploy = command("deploy", "Over a network: `init DIR METHOD` writes a federation, `node FILE` runs a node.")
    deploy.add_argument("action", choices=["init", "node"])
    deploy.add_argument("place", metavar="DIR|FILE", help="the folder to write, or the settings file of a node")
    deploy.set_defaults(method=None)
    deploy.add_argument("--nodes", type=int, default=3, help="number of nodes; default 3")
    deploy.add_argument("--own-data", action="store_true", help="each node names its own data; --data is an example")
    deploy.add_argument("--host", action="append", help="name or address of the server; default localhost")
    deploy.add_argument("--port", type=int, default=8000, help="port of the server; default 8000")
    quorum(deploy)
    settings(deploy, (DataSettings, RunSettings))
    deploy.add_argument("--config", help="settings as a YAML file; options given here win")
    report = command("report", "Write report.html from run folders.")
    report.add_argument("runs", nargs="+", metavar="RUN")
    report.add_argument("--out", help="where to write; default: report.html in the first run folder")
    partition = command("partition", "Make a partition file, or verify one.")
    partition.add_argument("action", choices=["make", "verify"])
    partition.add_argument("--out", help="folder of the partition", required=True)
    settings(partition, (DataSettings,))
    return top


def _main(words: list[str]) -> int:
    args, rest = _parser().parse_known_args(words)
    if args.version:
        import weft

        print(weft.__version__)
        return 0
    if args.command is None:
        _parser().print_help()
        return 0
    from weft.experiment.plugins import load_methods

    load_methods(tuple(args.plugin))
    commands = {
        "run": _run,
        "compare": _compare,
        "sweep": _sweep,
        "methods": _methods,
        "data": _data,
        "models": _models,
        "explain": _explain,
        "deploy": _deploy,
        "report": _report,
        "partition": _partition,
    }
    own, bare = _options(rest)
    if args.command in ("run", "deploy") and bare:
        args.method = bare.pop(0)
    if bare:
        raise SettingError(f"{bare[0]!r} is no option: options of a method look like --mu 0.1")
    if own and args.command not in ("run", "compare", "sweep", "explain", "deploy"):
        raise SettingError(f"weft {args.command} has no option --{next(iter(own))} (see `weft {args.command} --help`)")
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    commands[args.command](args, own)
    return 0


def _options(rest: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """From what the parser left, method options (--name value or --name=value) and the other words."""
    found: dict[str, str] = {}
    words, bare = list(rest), []
    while words:
        word = words.pop(0)
        if not word.startswith("--"):
            bare.append(word)
            continue
        name, equals, value = word[2:].partition("=")
        if not equals:
            if not words or words[0].startswith("--"):
                raise SettingError(f"option --{name} needs a value, such as --{name} 0.1")
            value = words.pop(0)
        found[name.replace("-", "_")] = value
    return found, bare


def _given(args: argparse.Namespace, kind: type[Any]) -> dict[str, Any]:
    return {f.name: getattr(args, f.name) for f in dataclasses.fields(kind) if hasattr(args, f.name)}


def _named(word: str) -> tuple[str, dict[str, str]]:
    """A method's name and the options after a colon: ``feddyn:alpha=0.1``, where --alpha would be the partition's."""
    name, _, text = word.partition(":")
    pairs = [pair.partition("=") for pair in text.split(",") if pair]
    for key, equals, value in pairs:
        if not equals or not value:
            raise SettingError(f"method = {word!r} has an option {key!r} without a value: write it like fedprox:mu=0.1")
    return name, {key.replace("-", "_"): value for key, _, value in pairs}


def _made(name: str, options: Mapping[str, Any]) -> Any:
    """A method, with an error that also knows the settings of runs."""
    from weft.experiment.settings import DataSettings, RunSettings, make

    takes = _takes(name)
    settings = [f.name for kind in (DataSettings, RunSettings) for f in dataclasses.fields(kind)]
    for option in options:
        if option not in takes and option != "opt":
            if option in settings:
                word = option.replace("_", "-")
                raise SettingError(f"{option} is a setting of the run, not of {name}: give it once, as --{word}")
            near = difflib.get_close_matches(option, [*takes, *settings], n=1)
            hint = f"did you mean --{near[0].replace('_', '-')}?" if near else f"it takes {', '.join(takes) or 'none'}"
            raise SettingError(f"{name} has no option --{option.replace('_', '-')}: {hint}")
    return make(name, options)


def _takes(name: str) -> list[str]:
    """The options of a method and of its optimiser."""
    from weft.core.registry import find
    from weft.local import SGD, Adam

    options = find(name).options
    optimiser = [f.name for kind in (SGD, Adam) for f in dataclasses.fields(kind)] if "opt" in options else []
    own = [o for o in options if o != "opt"]
    return list(dict.fromkeys([*own, *optimiser, *(["optimizer"] if optimiser else [])]))


def _prepared(args: argparse.Namespace) -> tuple[Any, Any, dict[str, Any]]:
    """(data settings, run settings, method section of the configuration file)."""
    import torch

    from weft.experiment.settings import DataSettings, RunSettings, from_mapping, load_yaml

    threads = getattr(args, "threads", None)
    if threads is not None:
        if threads < 1:
            raise SettingError(f"threads = {threads} computes nothing: use 1 or more")
        torch.set_num_threads(threads)
    config = load_yaml(Path(args.config)) if getattr(args, "config", None) else {}
    method = config.get("method", {})
    data = {k: v for k, v in config.get("data", {}).items() if k != "manifest"}
    return (
        from_mapping(DataSettings, data | _given(args, DataSettings)),
        from_mapping(RunSettings, config.get("run", {}) | _given(args, RunSettings)),
        {"name": method} if isinstance(method, str) else dict(method),
    )


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


def _run(args: argparse.Namespace, own: dict[str, str]) -> None:
    from weft.data.optional import optional
    from weft.experiment.run import Run
    from weft.experiment.sources import federated
    from weft.report.page import write_report
    from weft.report.read import read_runs
    from weft.report.terminal import print_comparison

    data, settings, method = _prepared(args)
    if args.resume and not args.out:
        raise SettingError("resume = True needs the folder of the run to go on with: add --out runs/NAME")
    name, written = _named(args.method or method.get("name", ""))
    if not name:
        raise SettingError("no method is named: write `weft run fedavg`, or name it in the configuration file")
    options = {k: v for k, v in method.items() if k != "name"} if method.get("name") == name else {}
    made = _made(name, options | own | written)
    out = Path(args.out) if args.out else _free(name)
    with ExitStack() as stack:
        divided, places = federated(data), None
        if settings.executor == "flower":
            optional("flwr", extra="flower", use="executor = 'flower'")
            from weft.deploy.network import on_this_machine

            how = {"deadline": args.deadline, "min_clients": args.min_clients, "plugins": args.plugin}
            home = out.with_name(f"{out.name}-nodes")
            places = stack.enter_context(on_this_machine(home, made, data, divided, settings, nodes=args.nodes, **how))
        run = Run.prepare(made, divided, settings, None, out, args.resume, args.tracker, args.profile, elsewhere=places)
        tell = stack.enter_context(_progress(args, name, settings.rounds))
        run.go(tell)
    print_comparison(read_runs([out]))
    if args.profile:
        print("\n".join(run.profile()))
    print(f"report: {write_report([out], out / 'report.html')}")


def _compare(args: argparse.Namespace, own: dict[str, str]) -> None:
    data, settings, _ = _prepared(args)
    methods = {}
    for word in args.methods:
        name, options = _named(word)
        methods[word.replace(":", "_").replace("=", "").replace(",", "_")] = _made(name, own | options)
    _side_by_side(args, methods, data, dict.fromkeys(methods, settings))


def _sweep(args: argparse.Namespace, own: dict[str, str]) -> None:
    import numpy as np

    from weft.experiment.compare import validation_accuracy
    from weft.experiment.settings import RunSettings, from_mapping

    data, settings, _ = _prepared(args)
    if not data.validation:
        raise SettingError("validation = 0 leaves a search nothing to choose by: use a share such as 0.1")
    grid: dict[str, list[str]] = {}
    for word in args.grid:
        name, equals, values = word.partition("=")
        if not equals or not values:
            raise SettingError(f"grid = {word!r} names no values: write it like lr=0.01,0.1")
        grid[name] = values.split(",")
    name, written = _named(args.method)
    takes, fields = _takes(name), [f.name for f in dataclasses.fields(RunSettings)]
    of_run = [k for k in grid if k in fields and k not in takes]
    methods, budgets = {}, {}
    for values in itertools.product(*grid.values()):
        chosen = dict(zip(grid, values, strict=True))
        label = name + "_" + "_".join(f"{k}{v}" for k, v in chosen.items())
        budgets[label] = from_mapping(RunSettings, vars(settings) | {k: chosen.pop(k) for k in of_run})
        methods[label] = _made(name, own | written | chosen)
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


def _methods(args: argparse.Namespace, own: dict[str, str]) -> None:
    from weft.core.registry import REGISTRY
    from weft.report.terminal import print_rows

    rows = [(e.name, e.family, e.summary.partition(": ")[2] or e.summary) for e in REGISTRY.values()]
    print_rows(("method", "family", "what it is"), sorted(rows, key=lambda r: (r[1], r[0])))


def _data(args: argparse.Namespace, own: dict[str, str]) -> None:
    from weft.experiment.sources import listing
    from weft.report.terminal import print_rows

    for title, rows in listing():
        print_rows(title, rows)


def _models(args: argparse.Namespace, own: dict[str, str]) -> None:
    from weft.models import catalogue
    from weft.report.terminal import print_rows

    print_rows(("model", "for", "what it is"), [(m.name, m.kind, m.about) for m in catalogue()])


def _explain(args: argparse.Namespace, own: dict[str, str]) -> None:
    from weft.experiment.explain import explain

    data, settings, _ = _prepared(args)
    name, written = _named(args.method)
    print(explain(_made(name, own | written), data, settings))


def _deploy(args: argparse.Namespace, own: dict[str, str]) -> None:
    from weft.data.optional import optional

    optional("flwr", extra="flower", use="weft deploy")
    place = Path(args.place)
    if args.action == "node":
        from weft.deploy.supernode import run_node

        return run_node(place)
    from weft.deploy.app import init

    data, settings, method = _prepared(args)
    name, written = _named(args.method or method.get("name", ""))
    if not name:
        raise SettingError("no method is named: write `weft deploy init DIR fedavg`")
    made = _made(name, {k: v for k, v in method.items() if k != "name"} | own | written)
    if not hasattr(args, "on_nan"):  # one node must not stop the others
        settings = dataclasses.replace(settings, on_nan="skip")
    how = {"nodes": args.nodes, "own_data": args.own_data, "port": args.port, "plugins": args.plugin}
    hosts = (*args.host, "localhost", "127.0.0.1") if args.host else ("127.0.0.1", "localhost")
    init(place, made, data, settings, hosts=hosts, deadline=args.deadline, min_clients=args.min_clients, **how)
    print(f"{place}: {name} for {args.nodes} nodes; {place / 'README.md'} says how to start it")


def _report(args: argparse.Namespace, own: dict[str, str]) -> None:
    from weft.report.page import write_report

    runs = [Path(r) for r in args.runs]
    print(write_report(runs, Path(args.out) if args.out else runs[0] / "report.html"))


def _partition(args: argparse.Namespace, own: dict[str, str]) -> None:
    from weft.experiment.sources import make_partition, verify_partition

    data, *_ = _prepared(args)
    print((make_partition if args.action == "make" else verify_partition)(data, Path(args.out)))


if __name__ == "__main__":
    sys.exit(main())
