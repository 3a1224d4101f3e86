"""When turns are machine code, and what a program may be used for again."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.experiment.small import RUN, archive, bits, weft
from tests.experiment.test_resume import interrupted
from tests.laws.toys import EXAMPLES, draw, examples, gap, make, train

from weft.compiled import compiler
from weft.executors import Batched, machine
from weft.local import SGD
from weft.methods.fedavg import fedavg

planning = __import__("weft.executors.plan", fromlist=["plan"])
pytestmark = pytest.mark.skipif(not compiler(), reason="no C compiler")


@pytest.fixture(autouse=True)
def programs(monkeypatch: pytest.MonkeyPatch) -> dict[Any, Any]:
    found: dict[Any, Any] = {}
    monkeypatch.setattr(machine, "_PROGRAMS", found)
    return found


def test_it_pays_from_so_many_steps_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """It follows from the plan, so a rerun and a resumed run have the same bits."""
    ran: dict[tuple[int, int], bool] = {}
    monkeypatch.setattr("weft.executors.batched.COMPILE", 100)
    for rounds, chunk in ((1, 4), (100, 4), (100, 1)):
        plan = Batched(chunk, rounds=rounds)
        train(make("fedavg"), plan, rounds=1)
        ran[rounds, chunk] = plan.compiled
    assert ran == {(1, 4): False, (100, 4): True, (100, 1): False}


def test_the_user_decides(programs: dict[Any, Any]) -> None:
    for asked in ("never", "always"):
        assert not programs
        train(make("fedavg"), plan := Batched(4, rounds=10**6, compile=asked), rounds=1)
        assert plan.compiled == bool(programs) == (asked == "always")


def test_a_program_is_used_again_for_other_data_but_not_for_another_method(programs: dict[Any, Any]) -> None:
    other, _ = examples(seed=7)
    for lr, data, several in ((0.05, EXAMPLES, 1), (0.05, other, 1), (0.1, EXAMPLES, 2), (0.05, EXAMPLES, 2)):
        plain, plan = Batched(4), Batched(4, compile="always")
        found = [train(fedavg(SGD(lr)), how, rounds=1, data=data) for how in (plain, plan)]
        assert plan.compiled and gap(*found) <= 1e-12
        assert len({key[:2] for key in programs}) == several


def test_cohorts_of_other_lengths_share_programs(programs: dict[Any, Any]) -> None:
    """Lengths are rounded up, so a run does not compile in every round."""

    def longer(number: int, *given: Any) -> Any:
        return draw(number, *given, epochs=number)

    train(make("fedavg"), plan := Batched(4, compile="always"), rounds=7, drawn=longer)
    assert plan.compiled and 1 < len(programs) <= 3


def test_a_large_net_is_left_to_torch(monkeypatch: pytest.MonkeyPatch, programs: dict[Any, Any]) -> None:
    monkeypatch.setattr(machine, "CACHE", 100)
    train(make("fedavg"), plan := Batched(4, compile="always"), rounds=1)
    assert not plan.compiled and list(programs.values()) == [None], "it is not tried again and again"


def test_a_loop_that_may_end_early_is_compiled_if_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody knows beforehand how many of its steps are made."""
    monkeypatch.setattr("weft.executors.batched.COMPILE", 1)
    for asked in ("auto", "always"):
        train(make("fedala"), plan := Batched(4, compile=asked), rounds=2)
        assert plan.compiled == (asked == "always")


@pytest.mark.parametrize("broken", ["none", "false"])
def test_without_a_compiler_torch_does_it(broken: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("weft.compiled.toolchain.compiler", lambda: None if broken == "none" else "/bin/false")
    plain, plan = Batched(4), Batched(4, compile="always")
    assert gap(*[train(make("fedavg"), how, rounds=2) for how in (plain, plan)]) == 0
    assert not plan.compiled


def test_errors_of_a_method_are_its_own() -> None:
    """What cannot be written is said, and torch tries it."""

    def work(net: Any, task: Any) -> Any:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), pytest.warns(UserWarning, match="could not be written: ZeroDivisionError"):
        train(replace(make("fedavg"), work=work), Batched(4, compile="always"), rounds=1)


def test_a_run_says_so_and_has_the_same_bits_when_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["run", "scaffold", *RUN, "--data", archive(tmp_path / "data.npz"), "--compile", "always", "--quiet"]
    assert weft(*words, "--out", tmp_path / "whole") == 0
    said = json.loads((tmp_path / "whole" / "summary.json").read_text())["plan"]
    assert said.endswith("turns in machine code")
    with monkeypatch.context() as stopped:
        interrupted(stopped, 3)
        assert weft(*words, "--out", tmp_path / "part") == 130
    assert weft(*words, "--out", tmp_path / "part", "--resume") == 0
    assert bits(tmp_path / "part") == bits(tmp_path / "whole")


def test_no_padding_is_computed_but_that_of_a_batch() -> None:
    method, ids = make("fedavg"), torch.arange(4)  # with 5, 12, 3 and 9 examples, and batches of 4
    turn, computed = draw(1, ids, method.phases, torch.zeros(4, dtype=torch.int64)), {}
    for asked in ("never", "always"):
        train(method, plan := Batched(4, compile=asked), rounds=1)
        computed[asked] = plan.computed(turn)
    assert computed == {"never": 4 * (4 + 4 + 2), "always": 4 * (2 + 3 + 1 + 3)}


def test_a_word_that_is_no_choice(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert weft("run", "fedavg", *RUN, "--data", archive(tmp_path / "d.npz"), "--compile", "sometimes") == 2
    assert "compile = 'sometimes'" in capsys.readouterr().err
