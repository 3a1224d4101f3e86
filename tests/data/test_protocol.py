"""Protocols: what is trained on, what is chosen by, what is tested on, and who never trains."""

from __future__ import annotations

import numpy as np
import pytest
from tests.data.divided import everything, labels, toy

from weft.core.errors import SettingError
from weft.data.federate import federate
from weft.data.federated import FederatedData, Rows
from weft.data.manifest import histogram

OWNER = np.arange(800) % 40


def test_official_tests_together_are_the_official_test() -> None:
    data = federate(toy())
    assert np.array_equal(np.sort(data.test.rows), np.arange(600, 800))
    assert data.protocol == data.manifest["recipe"]["protocol"] == "official"


def test_the_test_split_does_not_change_the_training_rows() -> None:
    many, few = federate(toy(600, 200)), federate(toy(600, 200, y=np.r_[toy().y[:600], np.zeros(200, int)]))
    assert np.array_equal(many.train.rows, few.train.rows) and np.array_equal(many.train.offset, few.train.offset)


def test_validation_is_carved_out_of_training_alone() -> None:
    with_it, without = federate(toy(), validation=0.2), federate(toy(), validation=0)
    assert np.array_equal(with_it.test.rows, without.test.rows) and not len(without.validation.rows)
    for k in range(20):
        both = np.concatenate([with_it.train.client(k), with_it.validation.client(k)])
        assert np.array_equal(np.sort(both), without.train.client(k))


def test_validation_is_the_nearest_share_and_stratified() -> None:
    data = federate(toy(4000), validation=0.2, alpha=1)
    train, kept = labels(data, "train"), labels(data, "validation")
    sizes = (train + kept).sum(1)
    assert np.array_equal(kept.sum(1), np.floor(0.2 * sizes + 0.5))
    assert (np.abs(kept - 0.2 * (train + kept)) < 1.5).all()


def test_small_clients_keep_their_minimum_for_training() -> None:
    data = federate(toy(), validation=0.9, min_examples=3, alpha=0.05)
    assert data.train.counts.min() >= 3
    assert federate(toy(), validation=0.5, clients=300).validation.counts.sum() == 0


@pytest.mark.parametrize(
    ("tests", "protocol", "share"), [(200, "pooled", 0.25), (0, "pooled", 0.25), (0, "official", 0.2)]
)
def test_clients_own_tests(tests: int, protocol: str, share: float) -> None:
    data = federate(toy(800 - tests, tests), protocol=protocol, validation=0, alpha=0.5)  # type: ignore[arg-type]
    sizes = data.train.counts + data.test.counts
    assert sizes.sum() == 800 and np.array_equal(data.test.counts, np.floor(share * sizes + 0.5))
    train, test = labels(data, "train"), labels(data, "test")
    assert (np.abs(test - share * (train + test)) < 1.5).all()


def test_pooled_mixes_the_official_splits() -> None:
    source = toy()
    data = federate(source, protocol="pooled", partition="iid")
    assert source.test is not None and source.test[data.train.rows].any() and not source.test[data.test.rows].all()


@pytest.mark.parametrize("protocol", ["official", "pooled"])
def test_characters_are_cut_in_time(protocol: str) -> None:
    data = federate(toy(800, 0, kind="characters", owner=OWNER), partition="natural", protocol=protocol)  # type: ignore[arg-type]
    for train, validation, test in zip(*(rows.each() for rows in data.splits().values()), strict=True):
        assert train.max() < validation.min() <= validation.max() < test.min()
    assert histogram(data.source, data.train).tolist() == [[int(n)] for n in data.train.counts]


def test_series_are_cut_in_time_within_labels() -> None:
    """Neighbouring windows overlap: at most one test window of a stretch may touch a training window."""
    source = toy(800, 0, kind="series", y=np.tile(np.repeat(np.arange(4), 5), 40), owner=np.repeat(np.arange(8), 100))
    data = federate(source, partition="natural")
    for train, test in zip(data.train.each(), data.test.each(), strict=True):
        for label in range(4):
            assert train[source.y[train] == label].max() < test[source.y[test] == label].min()


def test_natural_clients_keep_their_own() -> None:
    data = federate(toy(owner=OWNER), partition="natural")
    assert data.clients() == 40 and len(everything(data)) == 800 and data.manifest["left_out"] == 0
    for k in range(40):
        assert all((OWNER[rows.client(k)] == k).all() for rows in data.splits().values())


def test_some_natural_clients() -> None:
    source = toy(owner=OWNER)
    a, b = (federate(source, partition="natural", clients=5, seed=s) for s in (0, 1))
    assert a.clients() == 5 and a.manifest["left_out"] == 700 and a.manifest["hash"] != b.manifest["hash"]
    with pytest.raises(SettingError, match="clients = 41 is more than the 40"):
        federate(source, partition="natural", clients=41)


@pytest.mark.parametrize("protocol", ["official", "pooled"])
def test_natural_clients_that_are_too_small_are_left_out(protocol: str) -> None:
    owner = np.where(np.arange(800) < 3, 9, np.arange(800) % 2)
    data = federate(toy(owner=owner), partition="natural", min_examples=4, protocol=protocol)  # type: ignore[arg-type]
    assert data.clients() == 2 and data.manifest["left_out"] == 3 and data.train.counts.min() >= 4
    with pytest.raises(SettingError, match="leaves no natural client"):
        federate(toy(owner=owner), partition="natural", min_examples=700)


def test_people_of_the_official_test_never_train() -> None:
    data = federate(toy(owner=np.repeat(np.arange(40), 20)), partition="natural")
    assert data.unseen.tolist() == list(range(30, 40)) == np.flatnonzero(data.train.counts == 0).tolist()
    assert (data.test.counts > 0).all() and len(everything(data)) == 800


@pytest.mark.parametrize(("share", "count"), [(0, 0), (0.01, 1), (0.25, 5), (0.99, 19)])
def test_new_clients_are_listed_and_change_nothing_else(share: float, count: int) -> None:
    data, plain = federate(toy(), new_clients=share), federate(toy())
    assert len(data.unseen) == len(set(data.unseen.tolist())) == count and data.unseen.dtype == np.int64
    assert data.manifest["unseen"] == data.unseen.tolist() == sorted(data.unseen.tolist())
    assert all(np.array_equal(data.splits()[s].rows, rows.rows) for s, rows in plain.splits().items())


def rows(*parts: list[int]) -> Rows:
    return Rows.of([np.array(p, dtype=np.int64) for p in parts])


NONE = rows([], [])


@pytest.mark.parametrize(
    ("train", "validation", "test", "sentence"),
    [
        (rows([0, 1], [1, 2]), NONE, NONE, "example 1 is in two places: train of client 0 and train of client 1"),
        (rows([0], [1]), rows([0], []), NONE, "example 0 is in two places: train of client 0 and validation of "),
        (rows([0], [7]), NONE, rows([7], []), "example 7 .* train of client 1 and test of client 0"),
        (rows([0, 8], [1]), NONE, NONE, "example 8 of the official test split is in train of client 0"),
        (rows([0], [1]), rows([], [9]), NONE, "example 9 of the official test split is in validation of client 1"),
        (rows([0], []), NONE, NONE, "client 1 has no training example"),
        (rows([0], [-1]), NONE, NONE, "names example -1 of 10"),
        (rows([0], [10]), NONE, NONE, "names example 10 of 10"),
        (rows([0], [1]), rows([]), NONE, "for \\[2, 1, 2\\] clients"),
        (Rows(np.arange(3), np.array([0, 2, 1])), NONE, NONE, "train rows of a partition are malformed"),
        (Rows(np.arange(3), np.array([0, 2, 2])), NONE, NONE, "train rows of a partition are malformed"),
        (Rows(np.arange(3.0), np.array([0, 2, 3])), NONE, NONE, "train rows of a partition are malformed"),
    ],
)  # fmt: skip
def test_unsound_divisions_cannot_be_made(train: Rows, validation: Rows, test: Rows, sentence: str) -> None:
    with pytest.raises(SettingError, match=sentence):
        FederatedData(toy(8, 2), train, validation, test, "official", {})


def test_a_client_without_training_examples_must_be_unseen() -> None:
    unseen = np.array([1])
    data = FederatedData(toy(8, 2), rows([0], []), NONE, rows([8], [9]), "official", {}, unseen)
    assert data.clients() == 2 and data.test.client(1).tolist() == [9] and data.test.counts.tolist() == [1, 1]
    with pytest.raises(SettingError, match="unseen clients"):
        FederatedData(toy(8, 2), rows([0], [1]), NONE, NONE, "official", {}, np.array([2]))
