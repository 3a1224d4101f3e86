"""docs/deploy.md as readers try it: all commands in a shell, those after ``<!-- terminal -->`` in one of their own."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import pytest

pytest.importorskip("flwr", reason="weft[flower] is not installed")

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"^(?P<terminal><!-- terminal -->\n)?```(?P<kind>\w*)\n(?P<body>.*?)^```$", re.MULTILINE | re.DOTALL)
SECONDS = 240


def test_every_command_of_the_page(tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="weft[ray] is not installed")
    from weft.deploy.superlink import free_port

    text = (ROOT / "docs/deploy.md").read_text()
    for port in ("8000", "6379"):
        text = text.replace(port, str(free_port()))
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    source = f"{ROOT / 'src'}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    ray = tempfile.mkdtemp(prefix="ray-", dir="/tmp")  # paths of sockets must be short
    env = os.environ | {"PATH": path, "PYTHONPATH": source, "OMP_NUM_THREADS": "1", "RAY_TMPDIR": ray}
    terminals: list[subprocess.Popen[bytes]] = []
    run = 0
    try:
        for block in BLOCK.finditer(text):
            if block["kind"] != "bash":
                assert block["kind"] in ("yaml", "text"), block["body"]
                continue
            if not block["terminal"]:
                done = subprocess.run(
                    ["bash", "-ec", block["body"]],
                    cwd=tmp_path,
                    env=env,
                    capture_output=True,
                    text=True,
                    timeout=SECONDS,
                )
                assert done.returncode == 0, f"{block['body']}\n{done.stdout}\n{done.stderr}"
                run += 1
                continue
            with (tmp_path / f"terminal-{len(terminals)}.log").open("wb") as out:
                terminals.append(
                    subprocess.Popen(
                        ["bash", "-ec", block["body"]],
                        cwd=tmp_path,
                        env=env,
                        stdout=out,
                        stderr=out,
                        start_new_session=True,
                    )
                )
            if found := re.search(r"--port (\d+)", block["body"]):
                wait_for(int(found[1]))
    finally:
        for process in terminals:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
        for process in terminals:
            with suppress(subprocess.TimeoutExpired):
                process.wait(15)
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        shutil.rmtree(ray, ignore_errors=True)
    assert run == 10 and len(terminals) == 5
    terminal = (tmp_path / "terminal-0.log").read_text()
    assert json.loads((tmp_path / "runs/joined/summary.json").read_text())["finished"], terminal
    laptop, network = (json.loads((tmp_path / "runs" / n / "summary.json").read_text()) for n in ("laptop", "network"))
    assert laptop["headline"]["value"] == pytest.approx(network["headline"]["value"], abs=0.01)
    assert network["executor"] == "flower"
    trial = json.loads((tmp_path / "trial/run/summary.json").read_text())
    assert trial["finished"] and trial["rounds"] == 3 and trial["headline"]["value"] > 0.5
    assert (tmp_path / "trial/run/report.html").exists()


def wait_for(port: int) -> None:
    until = time.monotonic() + SECONDS
    while time.monotonic() < until:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.2)
    raise AssertionError(f"nobody listens on {port}")
