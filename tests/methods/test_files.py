"""Method files are short, and hardly a run of six lines of code stands in two of them."""

from __future__ import annotations

import ast
from collections import Counter
from pathlib import Path
from statistics import median

import weft.methods
from weft.core.registry import REGISTRY
from weft.experiment.plugins import load_methods

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


def test_what_does_not_apply_is_a_law_and_has_a_reason() -> None:
    """The names are those that the tests ask for."""
    load_methods()
    asked = {"names", "moves", "home", "still", "blend"}
    for entry in REGISTRY.values():
        assert set(entry.exempt) <= asked and all(entry.apart.values()), entry.name
        assert ("neutral" in entry.apart) == (entry.neutral is None)
        assert ("quadratics" in entry.apart) == (entry.reaches_optimum is None)
