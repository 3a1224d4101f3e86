"""Synthetic domains and test streams: what they hold, that they repeat, and that they cannot leak."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from tests.data.divided import toy

from weft.core.errors import SettingError
from weft.data.domains import DOMAINS, with_domains
from weft.data.federate import federate
from weft.data.federated import Rows, Stream
from weft.data.scaling import moments
from weft.data.source import Source
from weft.data.streams import known, with_streams


def images(n: int = 200, tests: int = 100, dtype: type = np.uint8) -> Source:
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (n + tests, 1, 6, 6)).astype(dtype)
    test = np.arange(n + tests) >= n
    return Source("images", "image", x, np.arange(n + tests) % 5, 5, test, None, None, *moments(x, test))


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_domains_divide_every_label_evenly_and_change_only_images(dtype: type) -> None:
    source = images(dtype=dtype)
    made = with_domains(source, list(DOMAINS), seed=3)
    assert made.x.dtype == dtype and np.array_equal(made.y, source.y) and made.test is source.test
    assert np.array_equal(made.x, with_domains(source, list(DOMAINS), seed=3).x)
    assert not np.array_equal(made.domain, with_domains(source, list(DOMAINS), seed=4).domain)
    for half in (made.test, ~made.test):
        for label in range(5):
            counts = np.bincount(made.domain[half & (made.y == label)], minlength=len(DOMAINS))
            assert counts.max() - counts.min() <= 1
    unlike = [(made.x[made.domain == i] != source.x[made.domain == i]).any() for i in range(len(DOMAINS))]
    assert unlike == [name != "plain" for name in DOMAINS]
    assert made.x.min() >= source.x.min() and made.x.max() <= source.x.max()
    rotated = list(DOMAINS).index("rotated")
    one = int(np.flatnonzero(made.domain == rotated)[0])
    assert np.array_equal(made.x[one, 0], np.rot90(source.x[one, 0]))


def test_domains_of_a_federation() -> None:
    source = with_domains(images(), ["plain", "inverted"])
    data = federate(source, partition="domain", clients=4)
    for rows in (data.train, data.test):
        assert all(len(np.unique(source.domain[own])) == 1 for own in rows.each())


@pytest.mark.parametrize(
    ("names", "part"), [(["plain"], "two or more"), (["plain", "plain"], "each once"), (["plain", "pink"], "pink")]
)
def test_bad_domains(names: list[str], part: str) -> None:
    with pytest.raises(SettingError, match=part):
        with_domains(images(), names)


def test_domains_need_images_without_any() -> None:
    with pytest.raises(SettingError, match="not images"):
        with_domains(toy(), ["plain", "noisy"])
    with pytest.raises(SettingError, match="domains of its own"):
        with_domains(with_domains(images(), ["plain", "noisy"]), ["plain", "noisy"])


@pytest.mark.parametrize("name", known())
def test_streams_hold_the_test_examples_that_they_say(name: str) -> None:
    data = federate(with_domains(images(), ["plain", "inverted", "pale"]), partition="domain", clients=6)
    made = with_streams(data, [name], seed=1)
    stream, domain = made.streams[name], data.source.domain
    again = with_streams(data, [name], seed=1)
    assert np.array_equal(stream.rows.rows, again.streams[name].rows.rows) and made.manifest == again.manifest
    assert made.manifest["streams"][name] != with_streams(data, [name], seed=2).manifest["streams"][name]
    assert made.manifest["hash"] == data.manifest["hash"]
    for k in range(6):
        own, rows = data.test.client(k), stream.rows.client(k)
        foreign = stream.foreign[stream.rows.offset[k] : stream.rows.offset[k + 1]]
        assert len(set(rows.tolist())) == len(rows) and np.array_equal(~np.isin(rows, own), foreign)
        assert foreign.sum() == len(own)
        assert name.startswith("external") or np.array_equal(np.sort(rows[~foreign]), own)
        if name.startswith("switch"):
            assert not foreign[: len(own)].any() and foreign[len(own) :].all()
        if name.startswith("mixture"):
            assert np.diff(foreign.astype(int)).any() and not np.array_equal(foreign, np.sort(foreign))
        if name.endswith("domain"):
            assert not np.isin(domain[rows[foreign]], domain[data.train.client(k)]).any()


def test_a_stream_of_training_examples_is_refused() -> None:
    data = federate(toy())
    for split in ("train", "validation"):
        rows = Rows.of(
            [data.train.client(k)[:1] if split == "train" else data.validation.client(k)[:1] for k in range(20)]
        )
        with pytest.raises(SettingError, match="which is no test example"):
            replace(data, streams={"leak": Stream(rows, np.ones(len(rows.rows), dtype=bool))})
    with pytest.raises(SettingError, match="is not for 20 clients"):
        replace(data, streams={"short": Stream(Rows.of([data.test.client(0)]), np.zeros(1, dtype=bool))})


def test_unknown_and_impossible_streams() -> None:
    with pytest.raises(SettingError, match="is not known"):
        with_streams(federate(toy()), ["outside"])
    with pytest.raises(SettingError, match="needs data with domains"):
        with_streams(federate(toy()), ["switch-domain"])
    with pytest.raises(SettingError, match="finds no test example of others"):
        with_streams(federate(toy(), clients=1, partition="iid"), ["external"])
