"""What runs are doing now, read from their folders or from the page of another `weft status`, as text to be shown."""

from __future__ import annotations

import json
import os
import platform
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any, NamedTuple

from weft.core.errors import SettingError
from weft.report.number import number

FILE = "status.json"
FORMAT = 1
SILENT = 15.0
"""Seconds without a sign of life, of which there is one each second, after which a run is not called live."""
RUNS = 100  # of one folder
NAMED = 12  # clients of a round that the sentence names
PATIENCE = 5.0  # seconds for an answer over HTTP
LARGEST = 2**24  # bytes of one answer
_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # a proxy knows nothing of 127.0.0.1
OVER = ("finished", "stopped", "failed", "dead")


class Node(NamedTuple):
    """A place where clients live."""

    name: str
    state: str
    round: str
    seen: str
    cause: str


class Failure(NamedTuple):
    """Something that went wrong and that the run has survived."""

    when: str
    round: str
    who: str
    cause: str


@dataclass(frozen=True)
class Live:
    """A run as it is shown: every field but `done` and `rounds` is text for people."""

    name: str
    state: str  # live, silent, dead, finished, stopped, failed, unreadable
    said: str  # a sentence
    done: int
    rounds: int
    left: str
    facts: tuple[tuple[str, str], ...] = ()
    figures: tuple[tuple[str, str], ...] = ()
    nodes: tuple[Node, ...] = ()
    unlisted: str = ""  # what is said about nodes that are not listed
    failures: tuple[Failure, ...] = ()

    @property
    def over(self) -> bool:
        """Nothing more will come of it."""
        return self.state in OVER

    def plain(self) -> dict[str, Any]:
        """As JSON has it."""
        return asdict(self) | {
            "nodes": [n._asdict() for n in self.nodes],
            "failures": [f._asdict() for f in self.failures],
        }


def read(where: str) -> tuple[Live, ...]:
    """The runs at a folder (of one run, or of several, up to two levels below), or at an address that serves them.

    In order of names, so that nothing moves while it is watched; of many, the latest.

    Raises:
        SettingError: there is none, or nobody answers.
    """
    return _asked(where) if is_address(where) else _found(Path(where))


def is_address(where: str) -> bool:
    """`where` is no folder but something to be asked over HTTP."""
    return where.startswith(("http://", "https://"))


def _found(folder: Path) -> tuple[Live, ...]:
    if not folder.is_dir():
        raise SettingError(
            f"status of {folder}: there is no such folder; name one that `weft run --out` writes, or http://HOST:PORT"
        )
    if (folder / FILE).is_file():
        return (_shown(folder),)
    below = [p.parent for depth in ("*", "*/*") for p in folder.glob(f"{depth}/{FILE}")]
    if not below:
        raise SettingError(
            f"status of {folder}: no run has written {FILE} there; name a folder that `weft run --out` writes, or one "
            "that holds such folders"
        )
    latest = sorted(below, key=_written, reverse=True)[:RUNS]
    return tuple(_shown(path, str(path.relative_to(folder))) for path in sorted(latest))


def _written(folder: Path) -> float:
    try:
        return (folder / FILE).stat().st_mtime
    except OSError:
        return 0.0


def _shown(folder: Path, name: str = "") -> Live:
    """A run's file as text; where it is one of several and has a `name` among them, a damaged one is shown as such."""
    try:
        said = json.loads((folder / FILE).read_text(encoding="utf-8"))
        if said["format"] != FORMAT:
            raise ValueError(f"it has format {said['format']}, and this version of weft reads {FORMAT}")
        return shown(said | {"name": name} if name else said, time.time())
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        cause = _clean(f"it has no {error}" if isinstance(error, KeyError) else str(error) or type(error).__name__)
        if not name:
            raise SettingError(
                f"{folder / FILE} can't be read ({cause}): it is written anew when the run goes on"
            ) from None
        return Live(_clean(name), "unreadable", f"{FILE} can't be read: {cause}.", 0, 0, "–")


def shown(said: Mapping[str, Any], now: float) -> Live:
    """What a run has written, judged at the time `now` (seconds since 1970) on this machine."""
    state, done, rounds = _state(said, now), int(said["done"]), int(said["rounds"])
    pace = said["seconds_per_round"]
    left = number(pace * (rounds - done), "s") if pace is not None and state == "live" else "–"
    nodes = [
        Node(*map(_clean, (name, n["state"], str(n["round"]), _ago(now - n["seen"]), n["cause"])))
        for name, n in said["nodes"].items()
    ]
    failures = [
        Failure(*map(_clean, (_ago(now - f["time"]), str(f["round"]), f["who"], f["cause"])))
        for f in reversed(said["failures"])
    ]
    missing = int(said["nodes_seen"]) - len(nodes)
    return Live(
        name=_clean(said["name"]),
        state=state,
        said=_clean(_sentence(said, state, now)),
        done=done,
        rounds=rounds,
        left=left,
        facts=tuple((name, _clean(str(value))) for name, value in _facts(said, pace, now) if value not in ("", None)),
        figures=tuple((_clean(name), text) for name, text in _figures(said["figures"])),
        nodes=tuple(nodes),
        unlisted=f"{number(missing, 'count')} more nodes without trouble are not listed." if missing > 0 else "",
        failures=tuple(failures),
    )


def _state(said: Mapping[str, Any], now: float) -> str:
    if said["phase"] in OVER:
        return str(said["phase"])
    if said["host"] == platform.node() and not _lives(int(said["pid"])):
        return "dead"
    return "live" if now - said["beat"] < SILENT else "silent"


def _lives(pid: int) -> bool:
    """A process of that number is there; True where that cannot be asked."""
    if os.name != "posix":  # elsewhere signal 0 would end it
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        pass
    return True


def _sentence(said: Mapping[str, Any], state: str, now: float) -> str:
    done, rounds, heard = said["done"], said["rounds"], _ago(now - said["beat"])
    at = f"in round {said['round']} of {rounds}"
    match state:
        case "finished":
            return f"Finished {heard}, after {rounds} {'round' if rounds == 1 else 'rounds'}."
        case "stopped":
            return f"Stopped by hand {heard}, after {done} of {rounds} rounds; --resume goes on."
        case "failed":
            return f"Failed {heard} {at}: {said['cause']}"
        case "dead":
            return f"Dead: its process {said['pid']} is gone; last heard {heard}, {at}; --resume goes on."
        case "silent":
            return f"Silent: last heard {heard}, {at}; the process or its machine {said['host']} stands still."
    doing = f"Round {said['round']} of {rounds}: {said['phase']} for {number(max(0.0, now - said['since']), 's')}"
    size, first = said["cohort"]["size"], said["cohort"]["first"]
    if not size:
        return f"{doing}."
    names = ", ".join(map(str, first[:NAMED])) + (", …" if size > NAMED else "")
    return f"{doing}, {number(size, 'count')} of {number(said['clients'], 'count')} clients ({names})."


def _facts(said: Mapping[str, Any], pace: float | None, now: float) -> Iterator[tuple[str, Any]]:
    for name in ("method", "data", "model", "clients", "executor", "device"):
        yield name, said.get(name)
    yield "machine", said["host"]
    yield "process", said["pid"]
    yield "began", _ago(now - said["began"])
    yield "a round takes", number(pace, "s") if pace is not None else ""


def _figures(figures: Mapping[str, float | None]) -> Iterator[tuple[str, str]]:
    for name in sorted(figures, key=lambda name: (not name.startswith("test/"), "/personal/" not in name)):
        if not name.startswith("run/"):
            split, view, metric = name.split("/")
            yield f"{split} {metric}, {view} models", number(figures[name], "" if metric == "loss" else "%")
    for name in ("bytes_up", "bytes_down"):
        if f"run/{name}" in figures:
            yield f"{name.replace('_', ' ')}, last round", number(figures[f"run/{name}"], "B")


def _ago(seconds: float) -> str:
    return "now" if seconds < 2 else f"{number(seconds, 's')} ago"


def _clean(text: str) -> str:
    """Without characters that would command a terminal; names and causes come from anywhere."""
    return "".join(c if c.isprintable() or c == "\u202f" else " " if c.isspace() else "\ufffd" for c in str(text))


def _asked(address: str) -> tuple[Live, ...]:
    url = address.rstrip("/").removesuffix("/status.json") + "/status.json"
    try:
        with _DIRECT.open(url, timeout=PATIENCE) as answer:
            said = json.loads(answer.read(LARGEST))
        return tuple(_received(run) for run in said["runs"])
    except (OSError, HTTPException, ValueError, KeyError, TypeError, AttributeError) as error:
        cause = getattr(error, "reason", None) or error
        raise SettingError(
            f"status of {_clean(address)}: no answer of `weft status DIR --serve` there ({_clean(str(cause))}); "
            "start that, or name its address, such as http://127.0.0.1:8460"
        ) from None


def _received(run: Mapping[str, Any]) -> Live:
    """A run as another `weft status` shows it; what comes over a wire is checked like a file."""

    def pairs(rows: Sequence[Sequence[Any]]) -> tuple[tuple[str, str], ...]:
        return tuple((_clean(name), _clean(value)) for name, value in rows)

    def rows(kind: Any, found: Sequence[Mapping[str, Any]]) -> tuple[Any, ...]:
        return tuple(kind(*(_clean(row[field]) for field in kind._fields)) for row in found)

    return Live(
        name=_clean(run["name"]),
        state=_clean(run["state"]),
        said=_clean(run["said"]),
        done=int(run["done"]),
        rounds=int(run["rounds"]),
        left=_clean(run["left"]),
        facts=pairs(run["facts"]),
        figures=pairs(run["figures"]),
        nodes=rows(Node, run["nodes"]),
        unlisted=_clean(run["unlisted"]),
        failures=rows(Failure, run["failures"]),
    )
