"""Answers: the batched pass says what asking one client after the other says, and looks at nobody else's examples."""

from __future__ import annotations

import functools
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from tests.laws.toys import CLASSES, CLIENTS, EXAMPLES, METHODS, ROWS, but, draw, leaves, make, start, train
from torch.utils._pytree import tree_map

import weft
from weft.core.clients import Exam
from weft.core.kept import Kept
from weft.core.method import Round, shown
from weft.core.registry import REGISTRY
from weft.core.round import Federation, play
from weft.core.task import Data, Examples, Task
from weft.evaluation.answers import Answers, _chunks, answer
from weft.evaluation.protocol import looking
from weft.experiment.run import Run
from weft.experiment.settings import RunSettings

EVERYONE = np.arange(CLIENTS)
JUDGED = [np.roll(ROWS[(k + 1) % CLIENTS], k)[: 2 + 2 * k] for k in range(CLIENTS)]  # somebody's examples, 2 to 6
JUDGED[3] = JUDGED[3][:0]


def one_by_one(federation: Federation, name: str, rows: list[Any], examples: Examples = EXAMPLES) -> Answers:
    """The slow way: every client alone, without padding."""
    view, method = federation.method.views[name], federation.method
    parts: list[list[Any]] = []
    for k in range(CLIENTS):
        if not len(rows[k]):
            continue
        net, ids = next(g.net for g in federation.groups if k in g.ids), torch.tensor([k])
        down, stacked = shown(method, federation.server, Round(9, ids, CLIENTS, federation.net))
        down = tree_map(lambda x: x[0], down) if stacked else down
        mine = federation.clients.state(k)
        phases = {n: p for n, p in method.phases.items() if n == "adapt"}
        turn = tree_map(lambda x: x[0], draw(9, ids, phases, federation.turns[ids]))
        at = torch.from_numpy(rows[k])
        predict = view.newcomer if view.newcomer and not federation.turns[k] else view.predict
        task = Task(down, mine, Data(examples, turn))
        logits = predict(net, task)(examples.look(at)).detach()
        y = examples.label(at)
        loss = net.criterion(logits, y).numpy()
        guess = logits.argmax(1).numpy()
        scores = logits.softmax(1).numpy()
        parts.append([np.full(len(at), k), loss, (guess == y.numpy()).astype(float), y.numpy(), guess, scores])
    return Answers(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def ask(federation: Federation, view: str, rows: list[Any] = JUDGED, **sizes: Any) -> Answers:
    """What all say after round 9."""
    look, shown = looking(federation, 9), federation.method.views[view]
    return answer(federation.clients, shown, look, rows, EVERYONE, federation.turns, 9, **sizes)  # type: ignore[arg-type]


def equal(a: Answers, b: Answers) -> None:
    for x, y in ((a.client, b.client), (a.y, b.y), (a.guess, b.guess), (a.right, b.right)):
        np.testing.assert_array_equal(x, y)
    for x, y in ((a.loss, b.loss), (a.scores, b.scores)):
        np.testing.assert_allclose(x, y, rtol=0, atol=1e-9)  # type: ignore[arg-type]


@functools.cache
def trained(name: str) -> Federation:
    """A method after two rounds, in which some clients never took part; states lie from much to little to judge."""
    federation = start(make(name))
    for group, store in zip(federation.groups, federation.clients.kept, strict=True):  # type: ignore[attr-defined]
        store.arrange(torch.tensor([-len(JUDGED[k]) for k in group.ids]).argsort())
    return train(make(name), rounds=2, federation=federation)


VIEWS = [(name, view) for name in METHODS for view in REGISTRY[name].make().views]


@pytest.mark.parametrize(("name", "view"), VIEWS)
def test_all_at_once_is_one_by_one(name: str, view: str) -> None:
    federation = trained(name)
    slow = one_by_one(federation, view, JUDGED)
    for sizes in ({}, {"together": 2, "workers": 3}, {"block": 3}, {"together": 1, "block": 1}):
        equal(ask(federation, view, scores=True, **sizes), slow)
    assert ask(federation, view).scores is None


@pytest.mark.parametrize(("name", "view"), VIEWS)
def test_examples_of_others_are_not_looked_at(name: str, view: str) -> None:
    """With all examples spoilt but a client's own, its answers stay what they are; also beside others in a program."""
    federation = trained(name)
    sound = ask(federation, view, scores=True)
    for k in (1, 4):
        own = np.concatenate([ROWS[k], JUDGED[k]])
        keep = torch.zeros(len(EXAMPLES.x), dtype=torch.bool)
        keep[torch.from_numpy(own)] = True
        x = torch.where(keep[:, None], EXAMPLES.x, torch.nan)
        y = torch.where(keep, EXAMPLES.y, (EXAMPLES.y + 1) % CLASSES)
        spoilt = ask(but(federation, examples=replace(EXAMPLES, x=x, y=y)), view, scores=True)
        equal(spoilt.of(np.array([k])), sound.of(np.array([k])))


CHOOSING = ("ifca", "fedpcl")  # their views choose or compare by the client's own training examples
DRAWING_NOTHING = [
    (n, v) for n, v in VIEWS if v != "personal" or ("adapt" not in REGISTRY[n].make().phases and n not in CHOOSING)
]


@pytest.mark.parametrize(("name", "view"), DRAWING_NOTHING)
def test_a_view_that_draws_nothing_reads_no_training_example(name: str, view: str) -> None:
    federation = trained(name)
    judged = [np.array([k]) for k in range(CLIENTS)]
    x = EXAMPLES.x.clone()
    x[CLIENTS:] = torch.nan
    asked = partial(ask, view=view, rows=judged, scores=True)
    equal(asked(but(federation, examples=replace(EXAMPLES, x=x))), asked(federation))


@pytest.mark.parametrize("seed", range(20))
def test_chunks_hold_everybody_once_within_their_bounds(seed: int) -> None:
    rng = np.random.default_rng(seed)
    sizes, most, rows = rng.integers(1, 40, 50), int(rng.integers(1, 20)), int(rng.integers(20, 300))
    lying = rng.permutation(50)[: rng.integers(0, 50)]
    chunks = _chunks(lying, sizes, most, rows)
    assert sorted(c for chunk in chunks for c in chunk) == sorted(lying)
    for chunk in chunks:
        padded, real = len(chunk) * sizes[chunk].max(), sizes[chunk].sum()
        assert len(chunk) <= most and (
            len(chunk) == 1 or (padded <= rows and padded - real <= max(real / 4, rows / 64))
        )


def test_chunks_are_of_neighbours_unless_that_makes_far_more() -> None:
    near, lying = np.array([9, 9, 10, 9, 5, 5, 4, 5]), np.array([3, 1, 0, 2, 7, 6, 5, 4])
    assert [chunk.tolist() for chunk in _chunks(lying, near, 4, 64)] == [[3, 1, 0, 2], [7, 6, 5, 4]]
    far = np.array([9, 1, 1, 9, 1, 9, 9, 1])
    assert [set(chunk) for chunk in _chunks(lying, far, 4, 64)] == [{0, 3, 5, 6}, {1, 2, 4, 7}]


def test_states_are_not_copied_where_all_had_a_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a run, with unequal numbers of test examples, and programs of a few clients."""
    data = weft.federate(weft.load("mnist-10k"), partition="dirichlet", alpha=0.3, clients=12)
    run = Run.prepare(make("ditto"), data, RunSettings(rounds=1, model="logistic", chunk=5, workers=2))
    run.federation = play(run.federation, 1, torch.arange(12)).federation
    apart = [run.federation.clients.state(k) for k in range(12)]
    monkeypatch.setattr(Kept, "gather", lambda *_: pytest.fail("states were copied"))
    exam = Exam(1, "test", "personal", False, run.federation.turns, looking(run.federation, 1))
    marks = run.federation.clients.judge(exam)["test"]
    net = run.here.groups[0].net
    for k, got in zip(marks.ids, marks.metrics["accuracy"], strict=True):
        rows = torch.from_numpy(data.test.client(k))
        logits = net.apply(apart[k], run.here.examples.look(rows)).logits
        assert got == pytest.approx(float((logits.argmax(1) == run.here.examples.label(rows)).double().mean()))


def test_judging_changes_nothing() -> None:
    for name, view in VIEWS:
        federation = trained(name)
        before = [x.clone() for x in leaves(federation)]
        ask(federation, view)
        assert all(torch.equal(a, b) for a, b in zip(before, leaves(federation), strict=True))


def test_nobody_has_anything_to_judge() -> None:
    federation = trained("ditto")
    nothing = [np.zeros(0, dtype=np.int64)] * CLIENTS
    for view in federation.method.views:
        said = ask(federation, view, nothing)
        assert len(said.client) == len(said.of(EVERYONE).client) == 0
