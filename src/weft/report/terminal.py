"""What a run says in the terminal: a live line per round, and a table at the end."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Sequence
from types import TracebackType

from rich import box
from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from weft.privacy.ledger import in_words
from weft.report.number import number
from weft.report.read import Result, Run

_PLAIN_WIDTH = 140


def comparison(runs: Sequence[Run]) -> Table:
    """One row per run and view: test figures (last, chosen, mean of last ten), bytes and wall time."""
    metrics = dict.fromkeys(r.metric for r in runs)
    unit = "" if set(metrics) == {"loss"} else ", %"
    title = f"Test {', '.join(metrics).replace('_', ' ')} over clients{unit}"
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False, title=escape(title))
    table.add_column("method", overflow="fold", min_width=10)
    for name in ("last", "chosen", "mean-10", "plain ± std", "worst 10 %", "bytes", "time"):
        table.add_column(name, justify="right", no_wrap=True)
    for run in runs:
        sent = [run.cost[k] for k in ("bytes_up", "bytes_down") if k in run.cost]
        for view in run.views():
            last = run.result("last", view)
            stopped = "" if run.finished else f" ({run.rounds} of {run.planned} rounds)"
            table.add_row(
                escape(f"{run.label} {view}{stopped}"),
                *(_figure(run.result(moment, view), run.metric) for moment in ("last", "chosen", "mean_last_10")),
                f"{_figure(last, run.metric, '.mean')} ± {_figure(last, run.metric, '.std')}",
                _figure(last, run.metric, ".worst_decile"),
                number(sum(sent) if sent else None, "B"),
                number(run.cost.get("seconds.total"), "s"),
            )
    notes = [f"{run.label}: {in_words(run.privacy)}." for run in runs if run.privacy]
    if any(run.protocol == "pooled" for run in runs):
        notes.append("Protocol “pooled”: do not compare with results on an official test split.")
    table.caption = escape("\n".join(notes)) if notes else None
    return table


def print_comparison(runs: Sequence[Run], console: Console | None = None) -> None:
    """Prints `comparison`; where the output is no terminal, wide enough that nothing wraps."""
    console = console or Console()
    if not console.is_terminal:
        console = Console(file=console.file, width=max(console.width, _PLAIN_WIDTH))
    console.print(comparison(runs))


def print_rows(head: Sequence[str], rows: Iterable[Sequence[object]], console: Console | None = None) -> None:
    """Prints a plain table of words under the column names `head`; the last takes the room left."""
    console = console or Console()
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False)
    for name in head:
        table.add_column(escape(name), overflow="fold", no_wrap=name != head[-1])
    for row in rows:
        table.add_row(*(escape(str(cell)) for cell in row))
    console.print(table)


class Progress:
    """One line per round, redrawn in place in a terminal and printed line by line elsewhere; a context.

    Args:
        title: what is running, such as the method's name.
        rounds: the number of rounds of the whole run.
    """

    def __init__(self, title: str, rounds: int, console: Console | None = None) -> None:
        self._title, self._rounds = title, rounds
        self._console = console or Console()
        self._recent: deque[float] = deque(maxlen=10)
        self._headline = ""
        self._live: Live | None = None

    def __enter__(self) -> Progress:
        if self._console.is_terminal:
            self._live = Live(console=self._console, auto_refresh=False)
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def round(self, done: int, updates: int, seconds: float, headline: tuple[str, float] | None = None) -> None:
        """Round `done` (from 1) took `seconds` of wall time for `updates` client updates.

        `headline` is (name, value), such as ("personal accuracy", 0.971); it stays until the next one.
        """
        self._recent.append(seconds)
        if headline is not None:
            name, value = headline
            self._headline = f"{name} {number(value, '' if 'loss' in name else '%')}"
        left = (self._rounds - done) * sum(self._recent) / len(self._recent)
        speed = updates / seconds if seconds > 0 else math.inf
        rate = f"{speed:.0f}" if 10 <= speed < math.inf else number(speed)
        parts = [
            f"{self._title}  round {done}/{self._rounds}",
            f"{rate} client updates/s",
            f"{number(left, 's')} left",
            self._headline,
        ]
        line = Text("  ·  ".join(p for p in parts if p), overflow="ellipsis", no_wrap=True)
        if self._live is not None:
            self._live.update(line, refresh=True)
        else:
            self._console.print(line, soft_wrap=True)


def _figure(result: Result | None, metric: str, summary: str = "") -> str:
    value = None if result is None else result.test.get(metric + summary)
    return number(value, "" if metric == "loss" else "%").removesuffix("\u202f%")
