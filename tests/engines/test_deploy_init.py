"""``weft deploy init``: what it writes, what it refuses, and that no key travels with the app."""

from __future__ import annotations

import io
import stat
import zipfile
from pathlib import Path

import pytest
import yaml

from weft.cli import main

pytest.importorskip("flwr", reason="weft[flower] is not installed")


@pytest.fixture
def app(tmp_path: Path) -> Path:
    folder = tmp_path / "app"
    assert main(["deploy", "init", str(folder), "fedprox", "--mu", "0.2", "--nodes", "2", "--clients", "5"]) == 0
    return folder


def test_all_that_is_needed_is_there(app: Path) -> None:
    settings = yaml.safe_load((app / "settings.yaml").read_text())
    assert settings["method"]["name"] == "fedprox" and settings["method"]["mu"] == 0.2
    assert settings["deploy"]["clients"] == 5 and settings["deploy"]["examples"]["classes"] == 10
    nodes = [yaml.safe_load(path.read_text()) for path in sorted((app / "nodes").glob("*.yaml"))]
    assert [node["clients"] for node in nodes] == [[0, 2, 4], [1, 3]]
    for key in (*(app / "nodes").glob("*.key"), *(app / "certificates").glob("*.key")):
        assert stat.S_IMODE(key.stat().st_mode) == 0o600, key


@pytest.mark.filterwarnings("ignore:GitWildMatchPattern:DeprecationWarning")
def test_no_key_and_no_data_travel_with_the_app(app: Path) -> None:
    from flwr.cli.build import build_fab_from_disk

    (app / "run").mkdir()
    (app / "run" / "summary.json").write_text("{}")
    names = zipfile.ZipFile(io.BytesIO(build_fab_from_disk(app))).namelist()
    assert {"settings.yaml", "weft_app/server_app.py", "weft_app/client_app.py"} <= set(names)
    assert not [name for name in names if name.startswith(("certificates", "nodes", "flower", "run"))], names


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["--nodes", "9", "--clients", "5"], "nodes = 9 for 5 clients"),
        (["--min-clients", "7", "--clients", "5"], "min_clients = 7 is more than the 5 clients"),
        (["--deadline", "0"], "deadline = 0.0 is no time to answer in"),
        (["--data", "nowhere"], "data = 'nowhere'"),
        (["--muu", "1"], "did you mean --mu?"),
    ],
)
def test_bad_input_is_one_sentence(tmp_path: Path, words: list[str], why: str, capsys: pytest.CaptureFixture) -> None:
    folder = tmp_path / "new"
    assert main(["deploy", "init", str(folder), "fedprox", *words]) == 2
    said = capsys.readouterr().err
    assert why in said and said.startswith("weft: ") and said.count("\n") == 1
    assert not folder.exists(), "nothing is written"


def test_a_folder_that_holds_something_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "mine").write_text("mine")
    assert main(["deploy", "init", str(tmp_path), "fedavg"]) == 2
    assert "is not an empty folder" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


@pytest.mark.parametrize(
    ("text", "why"),
    [("name: a", "lacks certificate, clients"), ("x: [", "is not YAML"), (None, "cannot read the node's settings")],
)
def test_a_wrong_settings_file_of_a_node(
    tmp_path: Path, text: str | None, why: str, capsys: pytest.CaptureFixture
) -> None:
    path = tmp_path / "node.yaml"
    if text is not None:
        path.write_text(text)
    assert main(["deploy", "node", str(path)]) == 2
    assert why in capsys.readouterr().err
