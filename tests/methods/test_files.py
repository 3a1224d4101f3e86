"""Method files are short, and hardly a run of six lines of code stands in two of them."""

from __future__ import annotations

import ast
import re
from collections import Counter
from pathlib import Path
from statistics import median

import pytest

import weft.methods
from weft.core.docstring import section
from weft.core.errors import SettingError
from weft.core.laws import LAWS
from weft.core.registry import REGISTRY, method
from weft.experiment.plugins import load_methods

load_methods()
HERE = Path(__file__).parent
SECTIONS = ("Paper", "What it changes", "Algorithm", "Defaults", "Deviations", "Neutral", "Promise")

FILES = [p for p in sorted(Path(weft.methods.__path__[0]).glob("*.py")) if p.name != "__init__.py"]
RUN = 6


def code(path: Path) -> list[str]:
    """The lines that are neither blank, comment nor docstring, without their indentation."""
    text = path.read_text()
    told: set[int] = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
            told |= set(range(node.body[0].lineno, (node.body[0].end_lineno or 0) + 1))
    lines = [(i, line.strip()) for i, line in enumerate(text.splitlines(), 1) if i not in told]
    return [line for _, line in lines if line and not line.startswith("#")]


def repeated(files: list[list[str]]) -> float:
    """Share of the lines that are in a run of six which stands at two places or more."""
    runs = Counter(tuple(lines[i : i + RUN]) for lines in files for i in range(len(lines) - RUN + 1))
    inside = {
        (f, i + j)
        for f, lines in enumerate(files)
        for i in range(len(lines) - RUN + 1)
        if runs[tuple(lines[i : i + RUN])] > 1
        for j in range(RUN)
    }
    return len(inside) / sum(map(len, files))


def test_the_median_method_is_short() -> None:
    assert median(len(code(p)) for p in FILES) <= 60


def test_hardly_a_run_of_six_lines_is_repeated() -> None:
    files = [code(p) for p in FILES]
    assert repeated(files) < 0.03
    assert repeated([*files, files[1]]) > repeated(files)


def test_every_law_is_asked_for_whom_it_holds() -> None:
    """By a test that takes its subjects from the registry, or by the check of references below."""
    tests = "".join(p.read_text() for p in (HERE.parent / "laws").glob("test_*.py"))
    assert set(re.findall(r'subjects\("(\w+)"\)', tests)) | {"messages", "reference"} == set(LAWS)


@pytest.mark.parametrize("name", sorted(REGISTRY))
def test_every_method_has_a_reference(name: str) -> None:
    """Under its name or that of its file, and a test has both of them."""
    stem = REGISTRY[name].make.__module__.rpartition(".")[2]
    there = [n for n in (name.replace("-", "_"), stem) if (HERE / "reference" / f"{n}.py").exists()]
    imports = re.compile(rf"from reference(\.({'|'.join(there)}) import|.* import ({'|'.join(there)}) )")
    tests = [p.read_text() for p in HERE.glob("test_*.py")]
    assert there and any(imports.search(t) and f"from weft.methods.{stem} import" in t for t in tests)


def test_an_exemption_from_no_law_is_refused() -> None:
    with pytest.raises(SettingError, match="gravity of Newton is no law"):
        method("Newton", "base", exempt={"gravity": "it is a joke"})(lambda: None)  # type: ignore[arg-type,return-value]


@pytest.mark.parametrize("name", sorted(REGISTRY))
def test_the_file_says_what_is_no_matter_of_code(name: str) -> None:
    """Every section, no default that is not said where it is from, and how a client answers that had no turn."""
    entry = REGISTRY[name]
    assert all(len(section(entry.doc, heading)) > 4 for heading in SECTIONS), name
    assert all(len(why) > 10 for why in {**entry.apart, **entry.refused}.values())
    assert entry.newcomers, "say under Deviations how a client answers that had no turn"
