"""The command line: a thin layer that turns words into calls."""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence

from weft.cli import network, show, train, watch
from weft.cli.words import options, parser
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


def _main(words: list[str]) -> int:
    args, rest = parser().parse_known_args(words)
    if args.version:
        import weft

        print(weft.__version__)
        return 0
    if args.command is None:
        parser().print_help()
        return 0
    from weft.experiment.plugins import load_methods

    load_methods(tuple(args.plugin))
    commands = {
        "run": train.run,
        "compare": train.compare,
        "sweep": train.sweep,
        "methods": show.methods,
        "data": show.data,
        "models": show.models,
        "explain": show.explain,
        "deploy": network.deploy,
        "report": show.report,
        "status": watch.status,
        "partition": show.partition,
    }
    own, bare = options(rest)
    if args.command in ("run", "deploy") and bare:
        args.method = bare.pop(0)
    if bare:
        raise SettingError(f"{bare[0]!r} is no option: options of a method look like --mu 0.1")
    if own and args.command not in ("run", "compare", "sweep", "explain", "deploy"):
        raise SettingError(f"weft {args.command} has no option --{next(iter(own))} (see `weft {args.command} --help`)")
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    commands[args.command](args, own)
    return 0
