"""Nodes that start at once: each is a fork of one process that has imported what a node needs.

Their commands, each in a new process, are tried by `test_deploy_page`.
"""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.engines import faulty, refused, setting, telling
from weft.cli import main
from weft.deploy.network import Network
from weft.deploy.superlink import register

IMPORTED = (faulty, refused, setting, telling)
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload([__name__, "pytest"])  # a fork would import pytest, too, where that is the main program


class Warm:
    """As much of `subprocess.Popen` as a network has to do with."""

    def __init__(self, run: Callable[..., Any], *given: Any, out: Path) -> None:
        """`run`: what the process does, with these arguments; `out`: what it says is appended there."""
        self._process = FORKS.Process(target=_told, args=(out, run, *given), daemon=True)
        self._process.start()
        self.terminate, self.kill = self._process.terminate, self._process.kill

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        code = self._process.exitcode
        if code is None:
            raise subprocess.TimeoutExpired("a warm process", timeout or 0.0)
        return code


class WarmNetwork(Network):
    """A SuperLink whose nodes start at once."""

    def join(self, *names: str, registered: bool = True) -> None:
        if registered:
            register(self.app, self.address, names)
        for name in names:
            self.begin(name, command)

    def begin(self, name: str, run: Callable[..., Any], *given: Any) -> None:
        """Start a node that runs this, with its settings file and these arguments."""
        process = Warm(run, self.app / "nodes" / f"{name}.yaml", *given, out=self.app / f"{name}.log")
        self.nodes[name] = process  # type: ignore[assignment]


def command(path: Path) -> None:
    """``weft deploy node``."""
    sys.exit(main(["deploy", "node", str(path)]))


def _told(out: Path, run: Callable[..., Any], *given: Any) -> None:
    log = os.open(out, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    for stream in (1, 2):
        os.dup2(log, stream)
    run(*given)
