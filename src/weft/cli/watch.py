"""The command that watches runs: status."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from weft.core.errors import SettingError


def status(args: argparse.Namespace, own: dict[str, str]) -> None:
    """Show what runs are doing, in the terminal or as a page."""
    from weft.report import live, watch

    def found() -> Sequence[live.Live]:
        return live.read(args.where)

    if args.serve and args.once:
        raise SettingError("once = True and serve = True exclude each other: leave one out")
    if args.serve and live.is_address(args.where):
        raise SettingError(f"serve = True needs a folder, and {args.where} is an address: open it in a browser")
    found()  # what can't be shown is refused before a page is served
    try:
        if args.serve:
            _serve(found, args)
        else:
            watch.watch(found, once=args.once)
    except KeyboardInterrupt:
        pass  # the way to end it


def _serve(found: Any, args: argparse.Namespace) -> None:
    try:
        from weft.report.serve import serve
    except ImportError:
        raise SettingError(
            "serve = True needs FastAPI and uvicorn: pip install 'weft[status]'; without it the terminal shows the same"
        ) from None
    serve(found, args.where, args.host, args.port, lambda line: print(line, flush=True))
