"""The words of a command: what may be said, and what was."""

from __future__ import annotations

import argparse
import dataclasses
import typing
from collections.abc import Sequence
from typing import Any

from weft.core.errors import SettingError


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> typing.NoReturn:
        raise SettingError(f"{message} (see `{self.prog} --help`)")


def parser() -> _Parser:
    """All commands with their options."""
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
            hints = typing.get_type_hints(kind)
            for field in dataclasses.fields(kind):
                hint = hints[field.name]
                values = typing.get_args(hint) if typing.get_origin(hint) is typing.Literal else None
                said = f" ({', '.join(map(str, values))})" if values else ""
                more: dict[str, Any] = {"nargs": "?", "const": "true"} if hint is bool else {}
                if typing.get_origin(hint) is tuple:
                    more = {"action": "append"}
                group.add_argument(
                    "--" + field.name.replace("_", "-"),
                    default=argparse.SUPPRESS,
                    metavar="X",
                    help=f"{field.metadata['help']}{said}; default {field.default!r}",
                    **more,
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
    status = command(
        "status", "What a run is doing now, or several runs: in the terminal, or as a page in the browser."
    )
    status.add_argument("where", metavar="DIR|ADDRESS", help="run folder, a folder of such, or http://HOST:PORT")
    status.add_argument("--once", action="store_true", help="print and end")
    status.add_argument("--serve", action="store_true", help="a page in the browser, until Ctrl-C")
    status.add_argument(
        "--host", default="127.0.0.1", help="address to serve at; others than this machine's can read it"
    )
    status.add_argument("--port", type=int, default=8460, help="port of the page; 0: a free one; default 8460")
    partition = command("partition", "Make a partition file, or verify one.")
    partition.add_argument("action", choices=["make", "verify"])
    partition.add_argument("--out", help="folder of the partition", required=True)
    settings(partition, (DataSettings,))
    return top


def options(rest: Sequence[str]) -> tuple[dict[str, str], list[str]]:
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


def named(word: str) -> tuple[str, dict[str, str]]:
    """A method's name and the options after a colon: ``feddyn:alpha=0.1``, where --alpha would be the partition's."""
    name, _, text = word.partition(":")
    pairs = [pair.partition("=") for pair in text.split(",") if pair]
    for key, equals, value in pairs:
        if not equals or not value:
            raise SettingError(f"method = {word!r} has an option {key!r} without a value: write it like fedprox:mu=0.1")
    return name, {key.replace("-", "_"): value for key, _, value in pairs}
