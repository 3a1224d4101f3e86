"""Actors of a Ray cluster = one process, for every method, however the clients are shared among them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("ray", reason="weft[ray] is not installed")

from tests.laws.shares import ONE, dying, go, share
from tests.laws.toys import CLIENTS, cohort, gap, kept, subjects
from weft.core.clients import Marks, Message
from weft.core.here import Here
from weft.core.method import Round
from weft.core.round import begin
from weft.executors import cluster as clusters
from weft.executors.cluster import Cluster
from weft.executors.pool import Pool, pool

SHARES = {1: [[0, 1, 2, 3, 4, 5]], 2: [[3, 5], [0, 1, 2, 4]], 3: [[5], [0, 2, 4], [1, 3]]}
KINDS = {  # one method of each kind: how clients are shared has to do with what is sent, and with nothing else of it
    "fedavg": "sums",
    "marsit": "uploads one by one",
    "fedamp": "downloads of one's own",
    "mime": "two exchanges",
    "fedproto": "two architectures",
}


@pytest.fixture(scope="module")
def actors() -> Pool:
    """Three, the same for all tests that run in this process."""
    return pool(3, 0.25, 0.0)


def spread(actors: Pool, name: str, count: int, build: Any = share, *what: Any) -> tuple[Here, Cluster]:
    """(the copy of what clients keep, the clients at so many actors)."""
    here = share(ONE, torch.device("cpu"), name)
    shares = [torch.tensor(ids) for ids in SHARES[count]]
    return here, Cluster(here, actors, build, name, *what, shares=shares)


def apart(a: dict[str, Marks], b: dict[str, Marks]) -> float:
    """Largest difference between marks of the same clients."""
    assert a.keys() == b.keys()
    for view in a:
        assert np.array_equal(a[view].ids, b[view].ids) and np.array_equal(a[view].counts, b[view].counts)
        assert a[view].metrics.keys() == b[view].metrics.keys()
    pairs = [(a[v].metrics[m], b[v].metrics[m]) for v in a for m in a[v].metrics]
    assert all(np.array_equal(np.isnan(x), np.isnan(y)) for x, y in pairs)
    return max((float(np.nanmax(np.abs(x - y), initial=0.0)) for x, y in pairs), default=0.0)


@pytest.mark.parametrize("name", subjects("actors"))
def test_actors_change_nothing(actors: Pool, name: str) -> None:
    """Two of them with unlike shares; models, what clients keep, and how everybody does under every view.

    A method of each kind is at one actor and at three, too.
    """
    whole, marks = go(share(ONE, torch.device("cpu"), name), name)
    for count in SHARES if name in KINDS else [2]:
        here, there = spread(actors, name, count)
        federation, found = go(there, name)
        there.close()
        assert gap(whole, replace(federation, clients=here)) <= 1e-9
        assert apart(marks, found) <= 1e-9


def first_parts(actors: Pool, name: str, monkeypatch: pytest.MonkeyPatch) -> tuple[list[Any], int]:
    """(what two actors answer in the first round, how many things went into the object store for it)."""
    here, there = spread(actors, name, 2)
    federation, put = begin(here.method, there, CLIENTS, seed=1), []
    monkeypatch.setattr(
        clusters.ray, "put", lambda thing, ray_put=clusters.ray.put: put.append(thing) or ray_put(thing)
    )
    down = here.method.send(federation.server, Round(1, cohort(1), CLIENTS, federation.net))
    parts = list(there.hear(Message(1, 0, cohort(1), torch.zeros(4, dtype=torch.int64), down)))
    there.close()
    return parts, len(put)


def test_sums_come_back_as_one_and_the_download_is_sent_once(actors: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    parts, put = first_parts(actors, "fedavg", monkeypatch)
    assert put == 1 and [len(p.ids) for p in parts] and sorted(torch.cat([p.ids for p in parts])) == cohort(1).tolist()
    shapes = {k: v.shape for k, v in share(ONE, torch.device("cpu"), "fedavg").groups[0].net.init(0).items()}
    assert all({k: v.shape for k, v in part.up.model.items()} == shapes for part in parts)


def test_uploads_that_are_no_sums_come_back_one_by_one(actors: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    parts, put = first_parts(actors, "marsit", monkeypatch)
    assert put == 1
    for part in parts:
        assert {len(x) for tree in part.up for x in tree.values()} == {len(part.ids)}


@pytest.mark.parametrize(("name", "moments"), [("scaffold+", ["turn 2", "keep"]), ("ditto", ["judge"])])
def test_a_lost_actor_changes_no_bit(actors: Pool, name: str, moments: Sequence[str], tmp_path: Path) -> None:
    """Killed in the second turn of a round, while it writes what clients keep, and in judging.

    The first turn is below, and in tests/experiment/test_ray.py.
    """
    ends = []
    victim = int(cohort(2)[1])
    for flags, asked in ((tmp_path / "whole", ()), (tmp_path / "broken", tuple(moments))):
        flags.mkdir()
        here, there = spread(actors, name, 2, dying, str(flags), victim, asked)
        before = list(actors.actors)
        federation, marks = go(there, name)
        there.close()
        ends.append((replace(federation, clients=here), marks))
        lost = [a for a, b in zip(before, actors.actors, strict=True) if a is not b]
        assert sorted(p.name for p in flags.iterdir()) == sorted(asked) and len(lost) == bool(asked)
    (whole, marks), (broken, found) = ends
    assert gap(whole, broken) == 0 and apart(marks, found) == 0
    assert any(x.numel() for mine in kept(whole) for x in torch.utils._pytree.tree_leaves(mine))


def test_a_place_that_is_lost_again_and_again_ends_the_run(
    actors: Pool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(clusters, "ATTEMPTS", 1)
    _, there = spread(actors, "fedavg", 2, dying, str(tmp_path), int(cohort(2)[0]), ["turn 1"])
    began = time.perf_counter()
    with pytest.raises(ConnectionError, match=r"actor [01] of 2 was lost 1 times \("):
        go(there, "fedavg")
    assert time.perf_counter() - began < 60
    there.close()


def test_an_error_of_a_method_is_that_error(actors: Pool) -> None:
    with pytest.raises(KeyError, match="no-such-method"):
        spread(actors, "fedavg", 1, broken)


def broken(ids: Any, where: Any, name: str) -> Here:
    raise KeyError("no-such-method")
