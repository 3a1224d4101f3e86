"""The laws and references, as checks that a mistake can be held against."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import test_personalised_steps as personalised
import test_steps as steps
from reference.model import BnMlp, Mlp

from tests.compiled import test_program
from tests.data import test_protocol
from tests.executors import test_machine
from tests.experiment import test_figures, test_run, test_settings
from tests.laws import (
    test_batches,
    test_central,
    test_dropout,
    test_executors,
    test_learning,
    test_lost,
    test_neutral,
    test_newcomers,
    test_order,
    test_purity,
    test_quadratics,
    test_same_bits,
    test_schedule,
    test_wire,
)
from tests.laws.toys import gap, train
from tests.mutants.planting import Check
from weft.core import Method, SettingError
from weft.core.registry import REGISTRY
from weft.core.round import NotFinite
from weft.executors import Batched, loop
from weft.executors.machine import _PROGRAMS

WRONG = (AssertionError, NotFinite)


def _again(method: Method) -> Method:
    """The same method made anew, from the code as it now is."""
    return REGISTRY[method.name].make(**method.args)


@contextmanager
def _remade(cases: Any, name: str) -> Iterator[None]:
    case = cases[name]
    ours = _again(case.ours)
    cases[name] = case._replace(ours=ours) if isinstance(case, tuple) else replace(case, ours=ours)
    try:
        yield
    finally:
        cases[name] = case


def reference(name: str, norm: bool = False, executor: str = "batched") -> Check:
    """Three rounds equal the numpy reference of the same settings; what is overwritten shows in the loop only."""

    def run() -> None:
        with _remade(steps.CASES, name):
            steps.test_equals_the_reference(name, executor, 2 if norm else 0, BnMlp if norm else Mlp)

    return Check(f"reference {name}" + (", with batch norm" if norm else ""), run, WRONG)


def personal(name: str) -> Check:
    """The same for a personalised method, and for what its clients keep."""

    def run() -> None:
        with _remade(personalised.CASES, name):
            personalised.test_equals_its_reference(name, Batched(), 0)

    return Check(f"reference {name}", run, WRONG)


def answers(name: str) -> Check:
    """A client answers with its personal model."""

    def run() -> None:
        with _remade(personalised.CASES, name):
            personalised.test_answers_with_its_personal_model(name)

    return Check(f"{name} answers with its personal model", run, WRONG)


def optimum(name: str, cohort: int = 4) -> Check:
    """It reaches the optimum of quadratics with different minimisers, and does so in 80 rounds."""

    def run() -> None:
        assert test_quadratics.distance(name, cohort) < 1e-3

    return Check(f"law: {name} reaches the optimum of quadratics ({cohort} of 4 clients)", run, WRONG)


def _law(said: str, test: Callable[..., object]) -> Callable[[str], Check]:
    return lambda name: Check(f"law: {said} ({name})", partial(test, name), WRONG)


central = _law("one client is central training", test_central.test_one_client_is_central_training)
executors = _law("batched = loop", test_executors.test_batched_is_loop)
machine = _law("machine code changes nothing", test_executors.test_machine_code_changes_nothing)
chunks = _law("chunks change nothing", test_executors.test_chunks_change_nothing)
moves = _law("what is kept moves", test_learning.test_what_is_kept_moves)
not_off = _law("the default is not off", test_neutral.test_the_default_is_not_off)
names = _law("names of clients do not matter", test_order.test_names_do_not_matter)
unchanged = _law("inputs are unchanged", partial(test_purity.test_inputs_are_unchanged, execute=loop))
absent = _law("absent clients keep their state", test_purity.test_absent_clients_keep_their_state)
padding = _law("padding changes nothing", test_purity.test_padding_changes_nothing)
schedule = _law("half the rate", test_schedule.test_half_the_rate)
lost = _law("a lost upload is no client", test_lost.test_a_lost_upload_is_no_client)
at_home = _law("personal entries never travel", test_wire.test_personal_entries_never_travel)
statistics = _law(
    "running statistics travel with models only", test_wire.test_running_statistics_travel_with_models_only
)


def newcomers(name: str, *fails: type[Exception]) -> Check:
    """Clients that had no turn answer, each by what it receives and its own examples."""

    def run() -> None:
        test_newcomers.trained.cache_clear()
        try:
            for view in REGISTRY[name].make().views:
                test_newcomers.test_newcomers_with_the_same_examples_answer_alike(name, view)
        finally:
            test_newcomers.trained.cache_clear()

    return Check(f"law: newcomers answer ({name})", run, (*WRONG, *fails))


def unlike(name: str, **options: float) -> Check:
    """The defaults are not these, which another library has."""

    def run() -> None:
        bare = REGISTRY[name].make
        assert gap(train(bare()), train(bare(**options))) > 1e-9

    said = " and ".join(f"{option} = {value:g}" for option, value in options.items())
    return Check(
        f"law: {said} {'is' if len(options) == 1 else 'are'} not the default ({name})", run, (*WRONG, SettingError)
    )


def resume(name: str) -> Check:
    def run() -> None:
        with tempfile.TemporaryDirectory() as folder:
            test_same_bits.test_resume(name, Path(folder))

    return Check(f"law: stop and resume give the same bits ({name})", run, WRONG)


def _plain(said: str, test: Callable[[], object], **more: Any) -> Check:
    return Check(said, test, **more)


added = _plain(
    "all that is added to a weight is added to every row",
    partial(test_program.test_all_that_is_added_to_a_weight_is_added_to_every_row, 13),
)
epochs = _plain("law: every epoch draws every example once", test_batches.test_every_epoch_draws_every_example_once)
streams = _plain(
    "law: clients and rounds have streams of their own", test_batches.test_clients_and_rounds_have_streams_of_their_own
)
places = _plain("law: the place in a cohort does not matter", test_batches.test_the_place_in_a_cohort_does_not_matter)
share = _plain("law: a share is drawn at random", test_batches.test_a_share_is_drawn_at_random)
masks = _plain("law: masks differ between steps and layers", test_dropout.test_masks_differ_between_steps_and_layers)
cohorts = _plain("cohorts have their size", partial(test_run.test_cohorts_have_their_size, 0.5, 3))
seeded = _plain("cohorts follow the seed", test_run.test_cohorts_are_uniform_and_follow_the_seed)
yes_or_no = _plain("false is false", test_settings.test_yes_and_no)
chosen = _plain("validation chooses the round", test_figures.test_validation_chooses_the_round)
idle = _plain(
    "FedNova leaves out a client without a step", steps.test_fednova_leaves_out_a_client_without_a_step, fails=WRONG
)
extrapolated = _plain(
    "pFedMe does not extrapolate running statistics", personalised.test_pfedme_does_not_extrapolate_running_statistics
)
split = _plain(
    "training, validation and test are disjoint, or the data are refused",
    test_protocol.test_official_tests_together_are_the_official_test,
    fails=(AssertionError, SettingError),
)


def _reused() -> None:
    _PROGRAMS.clear()
    test_machine.test_a_program_is_used_again_for_other_data_but_not_for_another_method(_PROGRAMS)


reused = _plain("a program is used again for other data but not for another method", _reused)


def _unbrought() -> None:
    with _remade(steps.CASES, "fedproto"):
        steps.test_fedproto_keeps_the_prototype_of_a_class_that_nobody_brings()


unbrought = _plain("FedProto keeps the prototype of a class that nobody brings", _unbrought)
