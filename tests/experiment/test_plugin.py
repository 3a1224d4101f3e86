"""A method in a file of the user's own: by --plugin, by an entry point, under both executors, and held to laws."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from tests.docs.test_snippets import ROOT, blocks
from tests.laws.toys import gap, train

from weft.cli import main
from weft.core.errors import SettingError
from weft.core.registry import REGISTRY
from weft.data.federate import federate
from weft.data.load import load
from weft.executors import Batched, loop
from weft.experiment.api import run
from weft.experiment.plugins import load_methods

FILE = next(b.body for b in blocks((ROOT / "docs/write-a-method.md").read_text()) if b.file == "fadeprox.py")
SMALL = ["--clients", "4", "--rounds", "1", "--batch-size", "50", "--cohort", "0.5", "--model", "logistic", "--quiet"]


@pytest.fixture(autouse=True)
def registry() -> Iterator[None]:
    load_methods()
    before = dict(REGISTRY)
    yield
    REGISTRY.clear()
    REGISTRY.update(before)


@pytest.fixture
def file(tmp_path: Path) -> str:
    path = tmp_path / "fadeprox.py"
    path.write_text(FILE)
    return str(path)


def test_by_plugin_it_is_listed_explained_and_run(
    file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["methods"]) == 0 and "fadeprox" not in capsys.readouterr().out
    assert main(["methods", "--plugin", file]) == 0 and "fadeprox" in capsys.readouterr().out
    assert main(["explain", "fadeprox", "--plugin", file, "--decay", "0.25"]) == 0
    assert "decay = 0.25" in capsys.readouterr().out
    assert main(["run", "fadeprox", "--plugin", file, "--mu", "0.5", *SMALL, "--out", str(tmp_path / "out")]) == 0
    assert (tmp_path / "out/report.html").exists()


def test_by_entry_point(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "theirs.py").write_text(FILE)
    info = tmp_path / "theirs-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: theirs\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[weft.methods]\nmine = theirs\n")
    monkeypatch.syspath_prepend(tmp_path)
    load_methods()
    assert REGISTRY["fadeprox"].make(decay=1.0).args["decay"] == 1.0


def test_an_entry_point_that_cannot_be_loaded_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    info = tmp_path / "broken-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: broken\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[weft.methods]\nmine = no_such_module\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(SettingError, match="'mine'.*no_such_module"):
        load_methods()


@pytest.mark.parametrize(("text", "said"), [(None, "is no Python file"), ("1 / 0", "ZeroDivisionError")])
def test_a_file_that_is_no_plugin(
    text: str | None, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if text:
        (tmp_path / "broken.py").write_text(text)
    assert main(["methods", "--plugin", str(tmp_path / "broken.py")]) == 2
    assert said in capsys.readouterr().err


def test_both_executors_give_the_same_run(file: str) -> None:
    load_methods((file,))
    data = federate(load("mnist-10k"), clients=4, alpha=0.5)
    settings = {"rounds": 2, "batch_size": 200, "cohort": 3, "model": "logistic", "precision": "fp64"}
    a, b = (run("fadeprox", data, executor=e, **settings) for e in ("batched", "loop"))
    metric = a.history["metric"].to_pylist()
    assert metric == b.history["metric"].to_pylist()
    same = np.array(["seconds" not in m for m in metric])
    left, right = (r.history["value"].to_numpy()[same] for r in (a, b))
    assert np.abs(left - right).max() < 1e-9
    assert gap(a.federation, b.federation) < 1e-9


def test_laws(file: str) -> None:
    load_methods((file,))
    make = REGISTRY["fadeprox"].make
    ours = train(make(), Batched(), rounds=4)
    assert gap(ours, train(make(), loop, rounds=4)) <= 1e-9
    fedprox = train(REGISTRY["fedprox"].make(mu=0.1), rounds=4)
    assert gap(train(make(decay=1.0), rounds=4), fedprox) <= 1e-12
    assert gap(ours, fedprox) > 1e-6, "the pull does not fade"
    assert gap(train(make(), rounds=1), train(make(decay=0.1), rounds=1)) == 0, "it fades in a client's first turn"


def test_the_template_is_a_method_that_obeys_them_too() -> None:
    from weft.methods import _template

    make = _template.entry(_template.template)
    assert gap(train(make(), Batched()), train(make(), loop)) <= 1e-9
    assert gap(train(make(beta=0.0)), train(REGISTRY["fedavg"].make())) <= 1e-12
    assert gap(train(make()), train(REGISTRY["fedavg"].make())) > 1e-6
