"""docs/deploy.md as readers try it: all commands, those after ``<!-- terminal -->`` in a shell of their own.

Such a shell ends with its section of the page. Commands of Weft alone run in this process, which has imported already
what each of them needs, and has a cluster of its own, if it is not to join another one.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from tests.docs.test_snippets import commands
from weft.cli import main

pytest.importorskip("flwr", reason="weft[flower] is not installed")

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"^(?P<terminal><!-- terminal -->\n)?```(?P<kind>\w*)\n(?P<body>.*?)^```$", re.MULTILINE | re.DOTALL)
SECONDS = 240
SAME = {"runs/joined": "runs/cluster", "runs/network": "runs/laptop"}
"""Runs of the same figures."""


def test_every_command_of_the_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("ray", reason="weft[ray] is not installed")
    from weft.deploy.superlink import free_port
    from weft.executors.pool import pool

    pool(2, 0.5, 0.0)  # Ray has its actors look for modules where it is started
    monkeypatch.chdir(tmp_path)
    text = (ROOT / "docs/deploy.md").read_text()
    for port in ("8000", "6379"):
        text = text.replace(port, str(free_port()))
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    source = f"{ROOT / 'src'}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    ray = tempfile.mkdtemp(prefix="ray-", dir="/tmp")  # paths of sockets must be short
    env = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}  # theirs is another cluster than ours
    env |= {"PATH": path, "PYTHONPATH": source, "OMP_NUM_THREADS": "1", "RAY_TMPDIR": ray, "RAY_worker_niceness": "0"}
    run = started = 0
    try:
        for section in re.split(r"^(?=## )", text, flags=re.MULTILINE):
            with terminals(env) as start:
                for block in BLOCK.finditer(section):
                    if block["kind"] != "bash":
                        assert block["kind"] in ("yaml", "text"), block["body"]
                    elif block["terminal"]:
                        start(block["body"])
                        started += 1
                    else:
                        play(block["body"], env, capsys)
                        run += 1
    finally:
        shutil.rmtree(ray, ignore_errors=True)
    assert run == 11 and started == 5
    told = {n: json.loads((tmp_path / n / "summary.json").read_text()) for n in (*SAME, *SAME.values(), "trial/run")}
    for name, other in SAME.items():
        assert told[name]["headline"]["value"] == pytest.approx(told[other]["headline"]["value"], abs=0.01), name
    assert told["runs/joined"]["finished"] and told["runs/network"]["executor"] == "flower"
    trial = told["trial/run"]
    assert trial["finished"] and trial["rounds"] == 2 and trial["headline"]["value"] > 0.5
    assert (tmp_path / "trial/run/report.html").exists()


def play(body: str, env: Mapping[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    """Run a block of commands."""
    words = [shlex.split(command, comments=True) for command in commands(body)]
    if all(each[0] == "weft" and "--ray-address" not in each for each in words):
        for each in words:
            status = main(each[1:])
            assert status == 0, f"{each}\n{capsys.readouterr().err}"
        return
    done = subprocess.run(["bash", "-ec", body], env=env, capture_output=True, text=True, timeout=SECONDS)
    assert done.returncode == 0 and "Warning" not in done.stderr, f"{body}\n{done.stdout}\n{done.stderr}"


@contextmanager
def terminals(env: Mapping[str, str]) -> Iterator[Any]:
    """What starts commands in shells of their own, which end with it."""
    shells: list[subprocess.Popen[bytes]] = []

    def start(body: str) -> None:
        shells.append(subprocess.Popen(["bash", "-ec", body], env=env, start_new_session=True, **quiet))
        if found := re.search(r"--port (\d+)", body):
            wait_for(int(found[1]))

    with Path("terminals.log").open("ab") as out:
        quiet: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": out, "stderr": out}
        try:
            yield start
        finally:
            for shell in shells:
                with suppress(ProcessLookupError):
                    os.killpg(shell.pid, signal.SIGTERM)
            for shell in shells:
                with suppress(subprocess.TimeoutExpired):
                    shell.wait(15)
                with suppress(ProcessLookupError):
                    os.killpg(shell.pid, signal.SIGKILL)
                shell.wait()


def wait_for(port: int) -> None:
    until = time.monotonic() + SECONDS
    while time.monotonic() < until:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.2)
    raise AssertionError(f"nobody listens on {port}: {Path('terminals.log').read_text()}")
