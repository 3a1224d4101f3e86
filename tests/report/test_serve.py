"""The status page in a real browser: alive without reloading, read-only, readable on a phone and without a mouse."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from tests.experiment.small import RUN, archive, weft
from tests.report.browser import Browser, browser
from tests.report.test_live import ABOUT, gone, told, written

from weft.experiment.folder import RunFolder
from weft.experiment.status import Status
from weft.report.live import read

pytest.importorskip("fastapi", reason="the page needs the extra weft[status]")
pytest.importorskip("uvicorn", reason="the page needs the extra weft[status]")

EVIL = "<img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script>"


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """`weft status FOLDER --serve` in a process of its own; its address."""
    words = [sys.executable, "-m", "weft.cli", "status", str(folder), "--serve", "--port", "0"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        try:
            assert process.stdout
            line = process.stdout.readline()
            found = re.search(r"http://127\.0\.0\.1:\d+", line)
            assert found, line
            yield found[0]
        finally:
            process.send_signal(signal.SIGINT)
            try:
                said, _ = process.communicate(timeout=20)
            except subprocess.TimeoutExpired:
                process.kill()
                raise
        assert process.returncode == 0 and not said, said  # Ctrl-C is the way to end it


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def address(place: Path) -> Iterator[str]:
    """One server for all tests of this file, of a folder whose runs each test makes anew."""
    written(place / "first", told())
    with served(place) as found:
        yield found


@pytest.fixture(scope="module")
def shared_page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browser(tmp_path_factory.mktemp("profile")) as found:
        yield found


@pytest.fixture
def page(shared_page: Browser) -> Browser:
    shared_page.events.clear()
    return shared_page


@pytest.fixture
def runs(place: Path) -> Path:
    for file in place.glob("*/status.json"):
        file.unlink()
    return place


def asked(url: str, method: str = "GET", **headers: str) -> tuple[int, str, Any]:
    request = urllib.request.Request(url, method=method, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.status, answer.read().decode(), answer.headers
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode(), error.headers


def put(folder: Path, said: dict[str, Any]) -> None:
    folder.mkdir(exist_ok=True)
    (folder / ".part").write_text(json.dumps(said))
    (folder / ".part").replace(folder / "status.json")


def test_it_is_read_only_and_for_this_machine(runs: Path, address: str) -> None:
    put(runs / "a", told(name="a"))
    before = {p: p.read_bytes() for p in runs.rglob("*") if p.is_file()}
    status, html, headers = asked(address)
    assert status == 200 and not re.search(r"(?i)(src|href|action)\s*=|https?:|url\(|@import", html)
    policy = headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy and headers["X-Content-Type-Options"] == "nosniff"
    for method in ("POST", "PUT", "DELETE", "PATCH"):
        assert asked(f"{address}/status.json", method)[0] == 405
    for path in ("/docs", "/openapi.json", "/../settings.yaml", "/a/status.json", "/%2e%2e/%2e%2e/etc/passwd"):
        assert asked(address + path)[0] == 404
    assert asked(address, Host="evil.example")[0] == 400  # a name of another site for this machine
    with pytest.raises(OSError), socket.create_connection(("127.0.0.2", int(address.rpartition(":")[2])), 2):
        pass
    assert {p: p.read_bytes() for p in runs.rglob("*") if p.is_file()} == before


def test_the_terminal_shows_what_an_address_serves(
    runs: Path, address: str, capsys: pytest.CaptureFixture[str]
) -> None:
    put(runs / "a", told(pid=gone()))
    for where in (address, address + "/", address + "/status.json"):
        (run,) = read(where)
        assert (run.name, run.state, run.done, run.nodes[0].name) == ("a", "dead", 2, "b")
    assert weft("status", address, "--once") == 0
    assert "Dead: its process" in capsys.readouterr().out
    (runs / "a" / "status.json").unlink()
    assert weft("status", address, "--once") == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_the_page_lives_without_reloading(runs: Path, address: str, page: Browser) -> None:
    put(runs / "a", told())
    page.open(address)
    page.wait("document.querySelector('.run .lead')?.textContent.startsWith('Round 3 of 50')")
    assert page.value("document.querySelector('progress').value") == 2
    page.value(
        "window.kept = true; document.querySelector('summary').click(); document.querySelector('summary').focus()"
    )
    put(
        runs / "a",
        told(
            round=9,
            done=8,
            phase="evaluating",
            nodes={"c": {"state": "late", "round": 9, "seen": 0.0, "cause": "slow"}},
        ),
    )
    page.wait("document.querySelector('.run .lead').textContent.startsWith('Round 9 of 50: evaluating')")
    assert page.value("document.querySelector('progress').value") == 8
    assert page.value(
        "[...document.querySelectorAll('.nodes tr')].map((r) => r.cells[0].innerText + r.cells[4].innerText)"
    ) == ["cslow"]
    assert (
        page.value("window.kept && document.querySelector('details').open && document.activeElement.tagName")
        == "SUMMARY"
    )
    put(runs / "a", told(phase="failed", cause="the cause"))
    page.wait("document.querySelector('.state').textContent === 'failed'")
    assert page.value("document.getElementById('told').textContent") == "a: failed"
    assert "the cause" in page.value("document.body.innerText")
    (runs / "a" / "status.json").write_text("{")
    page.wait(
        "!document.getElementById('trouble').hidden || document.querySelector('.state').textContent === 'unreadable'"
    )
    assert not page.complaints()


def test_hostile_names_are_text(runs: Path, address: str, page: Browser) -> None:
    node = {"state": EVIL, "round": 1, "seen": 0.0, "cause": EVIL}
    failure = {"time": 0.0, "round": 1, "who": EVIL, "cause": EVIL}
    put(
        runs / "a",
        told(method=EVIL, nodes={EVIL: node}, failures=[failure], figures={f"{EVIL.replace('/', '')}/x/accuracy": 1.0}),
    )
    page.open(address)
    page.wait("document.querySelectorAll('.failures tr').length")
    shown = page.value("document.querySelector('.run').textContent")
    assert shown.count(EVIL) == 6  # name, state and cause of the node, who and cause of the failure, method
    assert page.value("document.querySelectorAll('main img, main script').length") == 0
    assert "owned" not in page.value("document.title")
    assert {r.removeprefix(address) for r in page.requests()} <= {"/", "/status.json", "/favicon.ico"}
    assert not page.complaints()


@pytest.mark.parametrize("dark", [False, True])
def test_it_fits_a_phone(dark: bool, runs: Path, address: str, page: Browser, tmp_path: Path) -> None:
    put(runs / "a", told())
    put(runs / ("b" * 60), told(phase="stopped"))
    page.open(address, 390, 800, dark)
    page.wait("document.querySelectorAll('.run').length === 2")
    assert page.value("document.documentElement.scrollWidth") <= 390
    shown = "[...document.querySelectorAll('main *')].filter((e) => e.innerText)"
    assert page.value(f"Math.min(...{shown}.map((e) => parseFloat(getComputedStyle(e).fontSize)))") >= 12
    page.picture(tmp_path / "phone.png")
    assert (tmp_path / "phone.png").stat().st_size > 10_000


def test_it_can_be_read_without_a_mouse_and_without_eyes(runs: Path, address: str, page: Browser) -> None:
    put(runs / "a", told())
    page.open(address)
    page.wait("document.querySelectorAll('.run').length")
    reached = []
    for _ in range(6):
        page.press("Tab", 9)
        reached.append(
            page.value("document.activeElement.getAttribute('aria-label') || document.activeElement.innerText")
        )
        if reached[-1] == "About this run":
            break
    assert reached[:3] == ["nodes of a", "failures of a", "About this run"]
    page.press("Enter", 13)
    page.tell("Input.dispatchKeyEvent", type="char", text="\r")
    page.wait("document.querySelector('details').open")
    tree = page.tell("Accessibility.getFullAXTree")["nodes"]
    said = {(n["role"]["value"], n.get("name", {}).get("value", "")) for n in tree if not n["ignored"]}
    for wanted in [
        ("heading", "a live"),
        ("progressbar", "rounds done of a"),
        ("region", "nodes of a"),
        ("columnheader", "what is wrong"),
        ("rowheader", "b"),
        ("cell", "no answer within 60 s"),
    ]:
        assert wanted in said, sorted(said)


def test_a_page_whose_server_is_gone_says_so(tmp_path: Path, page: Browser) -> None:
    written(tmp_path / "a", told())
    with served(tmp_path / "a") as address:
        page.open(address)
        page.wait("document.querySelectorAll('.run').length")
        assert page.value("document.getElementById('trouble').hidden")
    page.wait("!document.getElementById('trouble').hidden")
    assert "What stands below is old" in page.value("document.getElementById('trouble').innerText")


def test_a_real_run_is_followed_from_training_to_its_death(
    runs: Path, address: str, page: Browser, tmp_path: Path
) -> None:
    words = [
        *RUN,
        "--rounds",
        "100000",
        "--quiet",
        "--data",
        archive(tmp_path / "data.npz"),
        "--out",
        str(runs / "real"),
    ]
    with subprocess.Popen([sys.executable, "-m", "weft.cli", "run", "fedavg", *words]) as process:
        try:
            page.open(address)
            page.wait("document.querySelector('.state')?.textContent === 'live'")
            page.wait("document.querySelector('progress').value > 2")
            assert page.value("document.querySelector('.nodes th').textContent") == "this machine"
            assert "test accuracy, global models" in page.value("document.querySelector('.tiles').textContent")
        finally:
            process.kill()
    page.wait("document.querySelector('.state').textContent === 'dead'")
    assert f"its process {process.pid} is gone" in page.value("document.querySelector('.lead').textContent")


def test_a_port_that_is_taken_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Status(RunFolder(tmp_path), ABOUT, 1), socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        for given in (port, -1, 2**20):
            assert weft("status", tmp_path, "--serve", "--port", given) == 2
            said = capsys.readouterr()
            assert not said.out and said.err.count("\n") == 1 and f"port = {given}" in said.err


def test_without_fastapi_the_terminal_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "fastapi", None)
    monkeypatch.delitem(sys.modules, "weft.report.serve", raising=False)
    written(tmp_path / "a", told())
    assert weft("status", tmp_path / "a", "--serve") == 2
    assert "pip install 'weft[status]'" in capsys.readouterr().err
