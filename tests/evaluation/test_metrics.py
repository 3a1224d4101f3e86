"""Metrics of clients and over clients, against scikit-learn and by hand."""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from weft.evaluation.answers import Answers
from weft.evaluation.metrics import auc, over_clients, per_client

sk = pytest.importorskip("sklearn.metrics")


def answers(seed: int, n: int, classes: int, clients: int, grain: int = 4) -> Answers:
    """Answers with ties in the scores, and clients that lack labels."""
    rng = np.random.default_rng(seed)
    client = np.sort(rng.integers(0, clients, n) * 3)
    y = (rng.integers(0, classes, n) * rng.integers(0, 2, n) + client) % classes
    scores = np.round(rng.random((n, classes)) * grain) / grain
    guess = scores.argmax(1)
    return Answers(client, rng.random(n), (guess == y).astype(float), y, guess, scores)


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 10**6), st.integers(1, 200), st.integers(2, 7), st.integers(1, 8))
def test_metrics_of_clients_are_those_of_scikit_learn(seed: int, n: int, classes: int, clients: int) -> None:
    said = answers(seed, n, classes, clients)
    ids, counts, found = per_client(said, classes, full=True)
    assert ids.tolist() == sorted(set(said.client.tolist())) and counts.sum() == n
    for i, k in enumerate(ids):
        here = said.client == k
        y, guess = said.y[here], said.guess[here]
        assert counts[i] == here.sum()
        assert found["loss"][i] == pytest.approx(said.loss[here].mean())
        assert found["accuracy"][i] == pytest.approx(sk.accuracy_score(y, guess))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of labels that were guessed and are not there, and of one label alone
            assert found["balanced_accuracy"][i] == pytest.approx(sk.balanced_accuracy_score(y, guess))
            assert found["macro_f1"][i] == pytest.approx(sk.f1_score(y, guess, average="macro", zero_division=0))
        assert said.scores is not None
        own = said.scores[here]
        labels = np.unique(y)
        if len(labels) < 2:
            assert math.isnan(found["auc"][i])
        elif classes == 2:
            assert found["auc"][i] == pytest.approx(sk.roc_auc_score(y, own[:, 1]))
        else:
            each = [sk.roc_auc_score(y == c, own[:, c]) for c in labels]
            assert found["auc"][i] == pytest.approx(np.mean(each))


def _alone(y: Any, scores: Any) -> float:
    return float(auc(np.zeros(len(y), int), y, scores, 1)[0])


def _one_label_after_the_other(y: Any, scores: Any) -> float:
    """The slow way, to be equalled to the last bit."""
    labels = np.unique(y)
    if len(labels) < 2:
        return math.nan
    areas = []
    for c in labels if scores.shape[1] > 2 else labels[-1:]:
        _, place, count = np.unique(scores[:, c], return_inverse=True, return_counts=True)
        rank = (np.cumsum(count) - (count - 1) / 2)[place]
        n = int((y == c).sum())
        areas.append((rank[y == c].sum() - n * (n + 1) / 2) / (n * (len(y) - n)))
    return float(np.mean(areas))


@pytest.mark.parametrize("classes", [2, 3, 12])
def test_auc_of_all_clients_at_once_is_that_of_each(classes: int) -> None:
    said = answers(classes, 400, classes, 40)
    assert said.scores is not None
    said.scores[::17, 1] = np.nan
    ids, place = np.unique(said.client, return_inverse=True)
    slow = [_one_label_after_the_other(said.y[place == k], said.scores[place == k]) for k in range(len(ids))]
    np.testing.assert_array_equal(auc(place, said.y, said.scores, len(ids)), slow)
    assert np.isfinite(slow).any() and (classes > 2 or np.isnan(slow).any())


def test_auc_with_ties_by_hand() -> None:
    y, scores = np.array([0, 1, 0, 1]), np.array([0.2, 0.2, 0.1, 0.9])
    assert _alone(y, np.stack([1 - scores, scores], 1)) == (0.5 + 1 + 1 + 1) / 4
    constant = np.full((4, 3), 1 / 3)
    assert _alone(np.array([0, 1, 2, 2]), constant) == 0.5
    assert math.isnan(_alone(np.zeros(3, int), constant[:3]))


def test_auc_of_the_library_with_all_labels_present() -> None:
    rng = np.random.default_rng(0)
    y, raw = rng.integers(0, 4, 300), np.round(rng.random((300, 4)), 1) + 0.05
    scores = raw / raw.sum(1, keepdims=True)
    assert _alone(y, scores) == pytest.approx(sk.roc_auc_score(y, scores, multi_class="ovr"))


def test_the_weighted_mean_is_the_accuracy_of_all_examples_together() -> None:
    said = answers(3, 500, 5, 9)
    _, counts, found = per_client(said, 5, full=True)
    over = over_clients(counts, found)
    assert over["accuracy"] == pytest.approx(said.right.mean()) and over["loss"] == pytest.approx(said.loss.mean())
    assert over["accuracy.mean"] == pytest.approx(found["accuracy"].mean())
    assert over["accuracy.std"] == pytest.approx(found["accuracy"].std())


@pytest.mark.parametrize(("clients", "worst"), [(1, 1), (9, 1), (10, 1), (11, 2), (20, 2), (21, 3), (100, 10)])
def test_the_worst_decile_by_hand(clients: int, worst: int) -> None:
    values = np.random.default_rng(clients).permutation(clients) / clients
    over = over_clients(np.arange(1, clients + 1), {"accuracy": values, "loss": values})
    assert over["accuracy.worst_decile"] == pytest.approx(np.arange(worst).mean() / clients)
    assert over["loss.worst_decile"] == pytest.approx(np.arange(clients - worst, clients).mean() / clients)


def test_clients_without_a_value_are_left_out() -> None:
    over = over_clients(np.array([1, 100, 3]), {"auc": np.array([0.5, np.nan, 0.9]), "loss": np.full(3, np.nan)})
    assert over["auc"] == pytest.approx((0.5 + 2.7) / 4) and over["auc.mean"] == pytest.approx(0.7)
    assert over["auc.worst_decile"] == 0.5 and "loss" not in over


def test_an_infinite_loss_is_reported_as_one() -> None:
    over = over_clients(np.array([1, 2]), {"loss": np.array([0.5, np.inf])})
    assert over["loss"] == over["loss.mean"] == over["loss.worst_decile"] == np.inf


def test_sequences_have_perplexity_and_no_confusion() -> None:
    none = np.zeros(0, dtype=np.int64)
    said = Answers(np.array([0, 0, 2]), np.array([1.0, 3.0, 0.5]), np.array([0.5, 1.0, 0.0]), none, none, None)
    ids, counts, found = per_client(said, 9, full=True)
    assert ids.tolist() == [0, 2] and counts.tolist() == [2, 1] and set(found) == {"accuracy", "loss", "perplexity"}
    assert found["perplexity"] == pytest.approx(np.exp([2.0, 0.5])) and found["accuracy"].tolist() == [0.75, 0.0]


def test_nobody_and_some() -> None:
    said = answers(1, 50, 3, 4)
    some: Any = said.of(np.array([0, 6]))
    assert set(some.client.tolist()) == {0, 6} and len(some.y) == len(some.scores) == len(some.client)
    ids, counts, found = per_client(said.of(np.zeros(0, int)), 3, full=True)
    assert len(ids) == len(counts) == 0 and not any(map(len, found.values()))
