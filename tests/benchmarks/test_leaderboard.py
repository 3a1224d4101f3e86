"""The committed leaderboard and the records of papers are those of its table, and its page works in a browser."""

from __future__ import annotations

import functools
import shutil
import subprocess
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest
from benchmarks.methods import page, papers, settings, table
from tests.report.browser import Browser, browser

from weft.cli.chosen import given, made
from weft.cli.words import named, options, parser
from weft.core.registry import REGISTRY
from weft.data.load import SHELF
from weft.data.partition import PARTITIONERS
from weft.experiment.plugins import load_methods
from weft.experiment.settings import DataSettings, RunSettings, from_mapping
from weft.models import catalogue

load_methods()
ROOT = Path(__file__).parents[2]
records, words_of_commands = functools.cache(papers.records), functools.cache(parser)
HOW = "run `python -m benchmarks.methods.page` and commit what it writes"


def test_the_committed_page_is_that_of_the_committed_table() -> None:
    rows = table.load()
    home = ROOT / "docs" / "leaderboard"
    assert (home / "index.html").read_text(encoding="utf-8") == page.render(rows), HOW
    assert (home / "README.md").read_text(encoding="utf-8") == page.readme(rows), HOW


@pytest.mark.parametrize("name", sorted(REGISTRY))
def test_every_method_has_a_record_whose_command_can_be_run(name: str) -> None:
    record = records()[name]
    words = papers.command(record)
    assert words[0] == "weft"
    args, rest = words_of_commands().parse_known_args(words[1:])
    own, bare = options(rest)
    assert args.command == "compare" and not bare and args.seeds == 3
    for word in args.methods:
        called, written = named(word)
        assert called == name
        made(called, own | written)
    data = from_mapping(DataSettings, given(args, DataSettings))
    run = from_mapping(RunSettings, given(args, RunSettings))
    assert data.data in SHELF or data.data.startswith("hub:")
    assert data.partition in PARTITIONERS or data.partition == "natural"
    assert set(run.model.split(",")) <= {m.name for m in catalogue()}
    assert record["here"] in settings.SETTINGS
    assert all({"setting", "figure", "value", "source"} <= set(p) for p in record["published"])
    assert record["published"] or record["note"]


def test_our_figures_in_the_records_are_the_tables() -> None:
    rows, every = table.load(), records()
    for name in REGISTRY:
        assert every[name]["ours"] == papers.ours(every[name], rows), HOW
    assert (papers.PAPERS / "README.md").read_text(encoding="utf-8") == papers.listing(every), HOW


def test_the_nearest_setting_comes_first_in_a_record() -> None:
    rows = [
        {
            "setting": s,
            "method": "a",
            "headline": "yes",
            "rank": 1.0,
            "view": "v",
            "accuracy": a,
            "accuracy.se": 0.1,
            "failed": "",
        }
        for s, a in (("one", 0.25), ("two", 0.75))
    ]
    found = papers.ours({"method": "a", "here": "two"}, rows)
    assert list(found.items()) == [
        ("two", {"view": "v", "accuracy": 0.75, "se": 0.1}),
        ("one", {"view": "v", "accuracy": 0.25, "se": 0.1}),
    ]


class Board(HTMLParser):
    """The rows of the board that are shown, and what the page says."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.sorted: list[str] = []
        self.said, self._in, self._row, self._cell = "", "", False, False
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag == "tr":
            self._row = "data-setting" in given and "hidden" not in given
            if self._row:
                self.rows.append([])
        if tag in ("td", "th") and self._row:
            self.rows[-1].append("")
            self._cell = True
        if "aria-sort" in given:
            self.sorted.append(f"{given['data-key']} {given['aria-sort']}")
        self._in = given.get("id") or "" if tag == "p" else self._in

    def handle_endtag(self, tag: str) -> None:
        self._cell = self._cell and tag not in ("td", "th")
        self._row = self._row and tag != "tr"
        self._in = "" if tag == "p" else self._in

    def handle_data(self, text: str) -> None:
        if self._cell and self._row:
            self.rows[-1][-1] += text
        self.said += text if self._in == "count" else ""


@pytest.fixture(scope="module")
def board(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a board of three methods."""
    home = tmp_path_factory.mktemp("board")
    one: table.Row = {"setting": "mnist-dirichlet", "headline": "yes", "rank": None, "failed": "", "lr": 0.1}
    one |= {"parameter": "", "value": "", "seeds": 3.0, "rounds": 2.0, "accuracy.se": 0.01, "worst_decile": 0.1}
    one |= {"last": 0.2, "bytes_up": 1e6, "bytes_down": 1e6, "flops": 1e9, "seconds": 1.0}
    own = one | {"method": "fedala", "family": "personalised", "view": "personal"}
    rows = [
        one | {"method": "fedavg", "family": "base", "view": "global", "accuracy": 0.9, "bytes_up": 3e9},
        own | {"accuracy": 0.095, "bytes_up": 2e4},
        one | {"method": "fedbad", "family": "base", "view": "", "accuracy": None, "failed": "all <b>"},
        one
        | {"method": "fedala", "family": "personalised", "view": "personal", "accuracy": 0.95, "setting": "har-person"},
    ]
    (home / "index.html").write_text(page.render(rows), encoding="utf-8")
    return home / "index.html"


@pytest.fixture(scope="module")
def browse(board: Path) -> Callable[[str], Board]:
    """Opens the board in a browser, with a choice behind #."""
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("no Chromium here")

    def opened(choice: str) -> Board:
        quiet = ("--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={board.parent / 'profile'}")
        words = [program, *quiet, "--dump-dom", f"{board.as_uri()}{choice}"]
        said = subprocess.run(words, capture_output=True, text=True, timeout=120, check=True)
        return Board(said.stdout)

    return opened


@pytest.fixture(scope="module")
def window(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browser(tmp_path_factory.mktemp("profile")) as found:
        yield found


def test_the_page_sorts_and_filters_in_a_browser(browse: Callable[[str], Board]) -> None:
    start = browse("")
    assert [r[0] for r in start.rows] == ["fedala", "fedavg", "fedala", "fedbad"], "by accuracy; what has none is last"
    assert start.sorted == ["accuracy descending"] and start.said == "4 rows"
    assert "all <b>" in start.rows[-1][9], "escaped"
    few = browse("#sort=bytes&order=ascending&setting=mnist-dirichlet&kind=own&method=FedA")
    assert [r[0] for r in few.rows] == ["fedala"] and few.said == "1 row" and few.sorted == ["bytes ascending"]
    base = browse("#sort=bytes&order=descending&family=base")
    assert [r[0] for r in base.rows] == ["fedavg", "fedbad"]


def focus(window: Browser, words: str) -> None:
    """Press Tab until a field or button of these words has the focus."""
    for _ in range(40):
        window.press("Tab", 9)
        if window.value("document.activeElement.name || document.activeElement.textContent") == words:
            return
    raise AssertionError(f"Tab does not lead to {words}")


def test_the_page_sorts_and_filters_by_keyboard(window: Browser, board: Path) -> None:
    window.open(board.as_uri())
    window.wait("document.readyState == 'complete'")
    first = "[...document.querySelectorAll('#board tbody tr:not([hidden]) th')].map(cell => cell.textContent)"
    focus(window, "family")
    window.press("ArrowDown", 40)
    window.wait("location.hash.includes('family=base')")
    assert window.value(first) == ["fedavg", "fedbad"]
    window.press("ArrowUp", 38)
    window.wait("!location.hash.includes('family')")
    focus(window, "bytes")
    for order in ("descending", "ascending"):
        window.press(" ", 32)
        window.wait(f"document.querySelector('th[data-key=bytes]').ariaSort == '{order}'")
    assert window.value(first)[0] == "fedala" and window.value("document.activeElement.textContent") == "bytes"
    focus(window, "claim")
    window.tell("Input.insertText", text="z")
    window.wait("document.getElementById('count-claims').textContent == '0 rows'")
    assert not window.complaints()


@pytest.mark.parametrize("choice", ["", "#sort=accuracy&order=descending"])
def test_no_column_is_cut_at_1280_pixels(window: Browser, choice: str) -> None:
    """Of the committed page, with one setting and with all."""
    window.open("about:blank")
    window.open((ROOT / "docs/leaderboard/index.html").as_uri() + choice, width=1280)
    window.wait("document.readyState == 'complete' && Boolean(document.getElementById('board'))")
    boxes = "[...document.querySelectorAll('.scroll')].map(box => box.scrollWidth - box.clientWidth)"
    assert set(window.value(boxes)) == {0}
    window.open("about:blank")
    window.open((ROOT / "docs/leaderboard/index.html").as_uri() + choice, width=390)
    window.wait("document.readyState == 'complete' && Boolean(document.getElementById('board'))")
    assert window.value("document.documentElement.scrollWidth <= innerWidth"), "boxes scroll, the page does not"
