"""The generated pages and lists are those of the code."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

from weft.core.errors import SettingError
from weft.core.laws import LAWS
from weft.core.registry import REGISTRY
from weft.experiment import pages
from weft.experiment.plugins import load_methods
from weft.experiment.settings import DataSettings
from weft.experiment.sources import federated

ROOT = Path(__file__).parents[2]
HOW = "run `make pages` and commit what it writes"


def ours() -> list[str]:
    return sorted(e.name for e in pages.own())


def test_every_method_has_an_up_to_date_page() -> None:
    data = federated(DataSettings())
    stale = [n for n in ours() if (ROOT / f"docs/methods/{n}.md").read_text() != pages.page(REGISTRY[n], data)]
    assert not stale, HOW


def test_there_is_no_page_without_a_method() -> None:
    assert sorted(p.stem for p in (ROOT / "docs/methods").glob("*.md")) == ours(), HOW


@pytest.mark.parametrize(
    ("file", "folder"), [("README.md", "docs/methods"), ("docs/index.md", "methods"), ("docs/laws.md", "methods")]
)
def test_lists_are_up_to_date(file: str, folder: str) -> None:
    text = (ROOT / file).read_text()
    assert pages.with_lists(text, folder) == text, HOW


def test_a_list_is_renewed_between_its_markers_only() -> None:
    renewed = pages.with_lists("a <!-- methods -->former<!-- /methods --> b", "here")
    assert renewed.startswith("a <!-- methods -->\n| method") and renewed.endswith("|\n<!-- /methods --> b")
    assert "former" not in renewed and "(here/fedavg.md)" in renewed
    for text in ("no markers", "<!-- laws --> that does not end"):
        with pytest.raises(SettingError):
            pages.with_lists(text, "here")


def test_laws_are_listed_with_who_is_not_held_to_them_and_why() -> None:
    said = pages.laws("here").splitlines()
    for entry in pages.own():
        for why in entry.apart.values():
            assert any(f"(here/{entry.name}.md)" in line and line.endswith(f": {pages._plain(why)}.") for line in said)
    assert all(any(line.startswith(f"| `{law}` | ") for line in said) for law in LAWS)


def test_every_method_file_has_all_sections() -> None:
    wanted = ["Paper", "What it changes", "Algorithm", "Defaults", "Deviations", "Neutral", "Promise"]
    for name in ours():
        assert list(pages.sections(REGISTRY[name].doc)[1]) == wanted, name


def test_the_template_is_a_method_but_none_of_the_registry() -> None:
    template = importlib.import_module("weft.methods._template")
    load_methods()
    assert "template" not in REGISTRY
    assert list(pages.sections(template.__doc__ or "")[1]) == list(pages.sections(REGISTRY["fedavg"].doc)[1])
