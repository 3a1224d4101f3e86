"""What the documentation shows is run: Python blocks, `weft` commands, and the output that is printed beside them.

A page is run from top to bottom in an empty folder. ``<!-- setup ... -->`` is Python that readers do not see; a block
after ``<!-- file: NAME -->`` is written to that file instead of being run; in a ``console`` block each ``$ weft ...``
is followed by exactly what it prints.
"""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from weft.cli import main
from weft.core.registry import REGISTRY
from weft.experiment.plugins import load_methods

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
TERMINALS = ["deploy"]  # needs several at once: tests/engines/test_deploy_page.py
EXEMPT = ("make ", "pip install ", ".venv/bin/python -m pytest ")
NEEDS = {"weft run fedavg --data hub:": "a connection"}  # shown, not run
BLOCK = re.compile(
    r"^(?:<!-- setup\n(?P<setup>.*?)^-->"
    r"|(?:<!-- file: (?P<file>\S+) -->\n)?```(?P<kind>\w*)\n(?P<body>.*?)^```)$",
    re.MULTILINE | re.DOTALL,
)


class Block(NamedTuple):
    line: int
    kind: str
    body: str
    file: str


def blocks(text: str) -> Iterator[Block]:
    for m in BLOCK.finditer(text):
        line = text.count("\n", 0, m.start()) + 1
        hidden = m["setup"] is not None
        yield Block(line, "python" if hidden else m["kind"], m["setup"] if hidden else m["body"], m["file"] or "")


def commands(body: str) -> list[str]:
    lines = body.replace("\\\n", " ").splitlines()
    return [line.strip() for line in lines if line.strip() and not line.strip().startswith("#")]


@pytest.mark.parametrize("page", [p for p in PAGES if p.stem not in TERMINALS], ids=lambda p: p.stem)
def test_page_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    load_methods()
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    before, threads = set(REGISTRY), torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        play(page, capsys)
    finally:
        torch.set_num_threads(threads)
        for name in set(REGISTRY) - before:
            del REGISTRY[name]
        for name in [n for n, m in sys.modules.items() if str(tmp_path) in str(getattr(m, "__file__", ""))]:
            del sys.modules[name]


def play(page: Path, capsys: pytest.CaptureFixture) -> None:
    text, names = page.read_text(), {"__name__": f"page_{page.stem}"}
    fences = sum("setup" not in m[0].splitlines()[0] for m in BLOCK.finditer(text))
    assert 2 * fences == text.count("```"), f"{page.name}: a block does not start at the margin, and would not be run"
    for block in blocks(text):
        where = f"{page.name}:{block.line}"
        if block.file:
            Path(block.file).write_text(block.body)
        elif block.kind == "python":
            exec(compile("\n" * block.line + block.body, str(page), "exec", dont_inherit=True), names)
        elif block.kind == "bash":
            for command in commands(block.body):
                if not command.startswith((*EXEMPT, *NEEDS)):
                    assert command.startswith("weft "), f"{where}: {command!r} is neither a weft command nor exempt"
                    status = main([*shlex.split(command, comments=True)[1:]])
                    assert status == 0, f"{where}: {command}\n{capsys.readouterr().err}"
        elif block.kind == "console":
            for command, said in re.findall(r"^\$ weft (.*)\n((?:(?!\$ ).*\n)*)", block.body, re.MULTILINE):
                capsys.readouterr()
                main(shlex.split(command))
                printed = capsys.readouterr()
                assert (printed.out + printed.err).split() == said.split(), where
        else:
            assert block.kind in ("text", "toml", "yaml"), f"{where}: a block of kind {block.kind!r} is never run"


def test_blocks_are_found() -> None:
    text = "<!-- setup\na = 1\n-->\n\n<!-- file: b.py -->\n```python\nb\n```\n\n```bash\nweft run \\\n  x\n# no\n```\n"
    found = list(blocks(text))
    assert [(b.kind, b.body, b.file) for b in found[:2]] == [("python", "a = 1\n", ""), ("python", "b\n", "b.py")]
    assert [c.split() for c in commands(found[2].body)] == [["weft", "run", "x"]] and len(found) == 3


@pytest.mark.parametrize("page", [*PAGES, *sorted((ROOT / "docs/methods").glob("*.md"))], ids=lambda p: p.stem)
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text):
        assert target.startswith("https://") or (page.parent / target).exists(), f"{page.name}: {target}"
