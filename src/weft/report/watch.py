"""`weft status` in a terminal: one run in full, or several side by side, again and again."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from rich import box
from rich.console import Console, Group, RenderableType
from rich.live import Live as Screen
from rich.padding import Padding
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from weft.report.live import Live

EVERY = 1.0  # seconds
_PLAIN_WIDTH = 140
_STYLES = {"live": "bold green", "finished": "bold blue", "stopped": "bold yellow", "silent": "bold yellow"}
_TROUBLE = "bold red"


def watch(read: Callable[[], Sequence[Live]], console: Console | None = None, *, once: bool = False) -> None:
    """Show what `read` finds, each second until Ctrl-C; once, if asked to or if the output is no terminal."""
    console = console or Console()
    if once or not console.is_terminal:
        if not console.is_terminal:
            console = Console(file=console.file, width=max(console.width, _PLAIN_WIDTH))
        console.print(picture(read()))
        return
    with Screen(picture(read()), console=console, auto_refresh=False, vertical_overflow="visible") as screen:
        while True:
            time.sleep(EVERY)
            screen.update(picture(read()), refresh=True)


def picture(runs: Sequence[Live]) -> RenderableType:
    """One run in full, or a table of several and what is wrong with them."""
    return _full(runs[0]) if len(runs) == 1 else _several(runs)


def _full(run: Live) -> RenderableType:
    progress = Table.grid(padding=(0, 2))
    left = f", {run.left} left" if run.state == "live" else ""
    bar = ProgressBar(total=max(1, run.rounds), completed=run.done, width=40)
    progress.add_row(bar, f"{run.done} of {run.rounds} rounds done{left}")
    parts: list[RenderableType] = [_line(run), progress]
    for pairs in (run.figures, run.facts):
        if pairs:
            grid = Table.grid(padding=(0, 2))
            for name, value in pairs:
                grid.add_row(Text(name, style="dim"), Text(value))
            parts.append(Padding(grid, (1, 0, 0, 0)))
    if run.nodes:
        parts.append(_table("Nodes", ("node", "state", "round", "last seen", "what is wrong"), run.nodes))
    if run.unlisted:
        parts.append(Text(run.unlisted))
    if run.failures:
        parts.append(_table("Failures, latest first", ("when", "round", "who", "cause"), run.failures))
    return Group(*parts)


def _several(runs: Sequence[Live]) -> RenderableType:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False)
    table.add_column("run", overflow="fold")
    for name in ("state", "round", "left"):
        table.add_column(name, no_wrap=True)
    table.add_column("latest figure", overflow="fold")
    table.add_column("trouble", overflow="fold")
    for run in runs:
        figure = " ".join(run.figures[0]) if run.figures else "–"
        trouble = sum(bool(node.cause) for node in run.nodes)
        table.add_row(
            Text(run.name),
            Text(run.state, style=_STYLES.get(run.state, _TROUBLE)),
            f"{run.done}/{run.rounds}",
            run.left,
            Text(figure),
            f"{trouble} nodes" if trouble else "–",
        )
    return Group(table, *(_line(run) for run in runs if run.state not in ("live", "finished")))


def _line(run: Live) -> Text:
    return Text.assemble((run.name, "bold"), "  ", (run.state, _STYLES.get(run.state, _TROUBLE)), f"  {run.said}")


def _table(title: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False, title=title, title_justify="left")
    for name in head:
        table.add_column(name, overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    return table
