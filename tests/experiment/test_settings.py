"""Settings: what a run writes is enough to repeat it, and every form of a setting reads as the same value."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from tests.experiment.small import RUN, archive, bits, weft

from weft.core.errors import SettingError
from weft.core.registry import REGISTRY
from weft.core.select import role
from weft.experiment.drawing import rate
from weft.experiment.plugins import load_methods
from weft.experiment.settings import DataSettings, RunSettings, Settings, from_mapping, make, plain, read
from weft.local import SGD, Adam, AdamW

load_methods()

RECIPES = [
    ["fedavg", "--optimizer", "adamw", "--lr", "0.01", "--lr-schedule", "step", "--lr-decay", "0.5"],
    ["ditto", "--lam", "0.3", "--personal", "adam", "--cohort", "2", "--data-seed", "3", "--seed", "2"],
    ["fedper", "--keep", "head | norm", "--stragglers", "0.5", "--epochs", "3", "--new-clients", "0.3"],
    ["scaffold", "--option", "I", "--momentum", "0.9", "--compress", "topk:0.5", "--init-seed", "9"],
    ["fedprox", "--plug", "dbe:kappa=5", "--plug", "blend", "--compress", "quantise:4"],
    ["fedavg", "--partition", "natural", "--aggregate", "median", "--protocol", "pooled", "--precision", "fp64"],
]


@pytest.mark.parametrize("words", RECIPES, ids=[" ".join(r[:2]) + r[2] for r in RECIPES])
def test_settings_yaml_repeats_the_run(words: list[str], tmp_path: Path) -> None:
    data = archive(tmp_path / "data.npz", owner=np.arange(180) // 3 % 7)
    clients = ["--clients", "5"] if "natural" in words else []
    assert weft("run", *words, *RUN, *clients, "--quiet", "--data", data, "--out", tmp_path / "a") == 0
    note = tmp_path / "a" / "settings.yaml"
    assert weft("run", "--config", note, "--quiet", "--out", tmp_path / "b") == 0
    assert bits(tmp_path / "a") == bits(tmp_path / "b")
    assert (tmp_path / "b" / "settings.yaml").read_text() == note.read_text()


def test_people_that_are_only_tested_are_there_again(tmp_path: Path) -> None:
    """180 examples of 18 people in order: the last six are in the official test only."""
    data = archive(tmp_path / "data.npz", owner=np.arange(180) // 10)
    words = ["--partition", "natural", "--model", "logistic", "--rounds", "1", "--quiet", "--data", data]
    assert weft("run", "fedavg", *words, "--out", tmp_path / "a") == 0
    assert weft("run", "--config", tmp_path / "a" / "settings.yaml", "--quiet", "--out", tmp_path / "b") == 0
    assert bits(tmp_path / "a") == bits(tmp_path / "b")


def test_words_win_over_the_file(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    data = {"data": archive(tmp_path / "data.npz"), "clients": 3}
    file.write_text(yaml.safe_dump({"method": {"name": "fedprox", "mu": 0.5, "lr": 0.2}, "data": data,
                                    "run": {"rounds": 2, "model": "logistic"}}))  # fmt: skip
    assert weft("run", "--config", file, "--lr", "0.1", "--rounds", "1", "--quiet", "--out", tmp_path / "a") == 0
    note = yaml.safe_load((tmp_path / "a" / "settings.yaml").read_text())
    assert note["method"]["mu"] == 0.5 and note["method"]["opt"]["lr"] == 0.1
    assert note["run"]["rounds"] == 1 and note["data"]["clients"] == 3
    assert weft("run", "fedavg", "--config", file, "--quiet", "--out", tmp_path / "b") == 0
    assert yaml.safe_load((tmp_path / "b" / "settings.yaml").read_text())["method"]["opt"]["lr"] == 0.05
    file.write_text(f"method: local\ndata: {{data: '{data['data']}'}}\nrun: {{rounds: 1, model: logistic}}\n")
    assert weft("run", "--config", file, "--quiet", "--out", tmp_path / "c") == 0


@pytest.mark.parametrize("name", sorted(REGISTRY))
def test_arguments_as_plain_values_make_the_method_again(name: str) -> None:
    method = REGISTRY[name].make()
    written = yaml.safe_load(yaml.safe_dump({k: plain(v) for k, v in method.args.items()}))
    assert dict(make(name, written).args) == dict(method.args)


def test_settings_as_plain_values_and_back() -> None:
    made = Settings(make("fedper", {"keep": "head", "lr": "0.1"}), DataSettings(clients=3), RunSettings(rounds=2))
    back = Settings.read(yaml.safe_load(yaml.safe_dump(made.plain())))
    assert (back.data, back.run, dict(back.method.args)) == (made.data, made.run, dict(made.method.args))
    assert back.method.args["keep"] == role("head") and back.method.args["opt"] == SGD(0.1)
    with pytest.raises(SettingError, match="names no method"):
        Settings.read({"run": {}})


@pytest.mark.parametrize(
    ("options", "opt"),
    [
        ({}, SGD(0.05)),
        ({"lr": "0.1", "momentum": 0.9}, SGD(0.1, momentum=0.9)),
        ({"optimizer": "adam"}, Adam()),
        ({"optimizer": "adamw", "weight_decay": "0"}, AdamW(weight_decay=0.0)),
        ({"opt": "adam", "beta1": "0.5"}, Adam(beta1=0.5)),
        ({"opt": {"name": "sgd", "lr": 0.2}, "lr": "0.3"}, SGD(0.3)),
        ({"opt": {"name": "sgd", "lr": 0.2}, "optimizer": "sgd"}, SGD(0.2)),
        ({"opt": Adam(0.5)}, Adam(0.5)),
        ({"clip": "none"}, SGD(0.05)),
    ],
)
def test_optimisers(options: dict[str, Any], opt: Any) -> None:
    assert make("fedavg", options).args["opt"] == opt


@given(st.integers(0, 2**63 - 1))
def test_whole_numbers_are_not_rounded(value: int) -> None:
    assert read("seed", str(value), int) == read("seed", value, int) == value


@pytest.mark.parametrize(("value", "number"), [("1e3", 1000), ("20", 20), (5.0, 5), ("5.0", 5)])
def test_forms_of_whole_numbers(value: Any, number: int) -> None:
    found = read("rounds", value, int)
    assert found == number and type(found) is int


@pytest.mark.parametrize("value", [True, None, [], "", "nan", "1e999", "0x10", 2.5, float("nan"), float("inf")])
def test_what_is_no_whole_number(value: Any) -> None:
    with pytest.raises(SettingError, match="^rounds = "):
        from_mapping(RunSettings, {"rounds": value})


def test_schedules() -> None:
    def factors(kind: Any, decay: float = 0.5) -> list[float]:
        settings = RunSettings(rounds=8, lr_schedule=kind, lr_decay=decay)
        return [rate(settings, n) for n in range(1, 9)]

    assert factors("constant") == [1.0] * 8
    assert factors("exponential") == [0.5**i for i in range(8)]
    assert factors("step") == [1, 1, 1, 1, 0.5, 0.5, 0.25, 0.25]
    assert factors("cosine") == pytest.approx([(1 + np.cos(np.pi * i / 8)) / 2 for i in range(8)])


def test_the_schedule_scales_local_steps() -> None:
    """One full-batch step each round: with a factor of 1/2 per round the second is made with half the rate."""
    from tests.experiment.small import source

    import weft as api

    data = api.federate(source(), clients=1)
    one = {"model": "logistic", "batch_size": 0, "precision": "fp64"}
    ends = [
        api.run(api.fedavg(lr=lr), data, rounds=n, **more, **one).federation.server.model
        for lr, n, more in ((0.1, 1, {}), (0.1, 2, {"lr_schedule": "exponential", "lr_decay": 0.5}), (0.1, 2, {}))
    ]
    for k in ends[0]:
        assert (ends[1][k] - ends[0][k]).allclose((ends[2][k] - ends[0][k]) / 2)


def test_yes_and_no() -> None:
    assert [read("secure", word, bool) for word in ("true", "False", "FALSE", True, False)] == [
        True,
        False,
        False,
        True,
        False,
    ]
    with pytest.raises(SettingError, match="neither true nor false"):
        read("secure", "no", bool)
