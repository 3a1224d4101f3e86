"""What clients keep: in memory or in mapped files, the same bits."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from tests.laws.toys import gap, make, start, train
from torch import Tensor
from torch.func import vmap
from torch.utils._pytree import tree_leaves

from weft.core import here, kept
from weft.core.kept import Kept


class State(NamedTuple):
    model: dict[str, Tensor]
    age: Tensor


FIRST = State({"w": torch.arange(6.0).reshape(2, 3), "b": torch.ones(())}, torch.tensor(7))
PEOPLE = 9


def new(seed: int, count: int) -> State:
    g = torch.Generator().manual_seed(seed)
    model = {"w": torch.randn(count, 2, 3, generator=g), "b": torch.randn(count, generator=g)}
    return State(model, torch.randint(0, 99, (count,), generator=g))


def stores(tmp_path: Path) -> dict[str, Kept]:
    return {"memory": Kept(FIRST, PEOPLE), "paged": Kept(FIRST, PEOPLE, tmp_path, budget=0)}


def arranged(store: Kept, *order: int) -> Kept:
    """The store with its rows in another order."""
    store.arrange(torch.tensor(order))
    return store


def everything(store: Kept) -> list[Tensor]:
    return tree_leaves(store.gather(torch.arange(PEOPLE)))


def test_memory_and_pages_hold_the_same_bits(tmp_path: Path) -> None:
    both = stores(tmp_path)
    assert list(tmp_path.rglob("*.rows")) and len(list(tmp_path.rglob("*.rows"))) == 3
    for seed, members in enumerate([[0, 3, 8], [3], [], [1, 2, 3, 4]]):
        for store in both.values():
            store.scatter(torch.tensor(members, dtype=torch.int64), new(seed, len(members)))
    for a, b in zip(everything(both["memory"]), everything(both["paged"]), strict=True):
        assert torch.equal(a, b) and a.dtype == b.dtype
    assert both["paged"].seen().tolist() == both["memory"].seen().tolist() == [0, 1, 2, 3, 4, 8]


@pytest.mark.parametrize("where", ["memory", "paged"])
def test_what_is_written_is_read_and_the_rest_is_fresh(where: str, tmp_path: Path) -> None:
    store, wrote = stores(tmp_path)[where], new(1, 2)
    store.scatter(torch.tensor([5, 2]), wrote)
    got = store.gather(torch.tensor([2, 0, 5]))
    assert isinstance(got, State)
    for name in ("w", "b"):
        assert torch.equal(got.model[name][[0, 2]], wrote.model[name][[1, 0]])
        assert torch.equal(got.model[name][1], FIRST.model[name])
    assert got.age.tolist() == [int(wrote.age[1]), 7, int(wrote.age[0])]
    got.model["w"].zero_()  # a copy: what is kept does not change with it
    assert torch.equal(store.gather(torch.tensor([5])).model["w"][0], wrote.model["w"][0])


@pytest.mark.parametrize("where", ["memory", "paged"])
@pytest.mark.parametrize("members", [[1, 2, 3], [3], [3, 1], [1, 3], [2, 5, 8], [0, 7], []])
def test_reading_is_gathering(where: str, members: list[int], tmp_path: Path) -> None:
    """Members in a row, out of order, some of them new, all of them new, nobody."""
    store, asked = stores(tmp_path)[where], torch.tensor(members, dtype=torch.int64)
    store.scatter(torch.tensor([1, 2, 3, 5]), new(1, 4))
    with store.reading(asked) as (states, stacked):
        assert stacked == (members != [0, 7])
        for a, b in zip(tree_leaves(states), tree_leaves(store.gather(asked)), strict=True):
            assert torch.equal(a if stacked else a.expand(b.shape), b)
        at = states.model["w"].data_ptr() - store._rows[0].data_ptr()
        assert (at == 4 * 6 * members[0]) == (members in ([1, 2, 3], [3])) if members else True  # no copy of a row


@pytest.mark.parametrize("where", ["memory", "paged"])
def test_the_order_of_rows_changes_what_is_copied_and_nothing_else(where: str, tmp_path: Path) -> None:
    plain, store = Kept(FIRST, PEOPLE), arranged(stores(tmp_path)[where], 8, 3, 0, 5, 1, 2, 7, 6, 4)
    for seed, members in enumerate([[0, 3, 8], [5, 3]]):
        for each in (plain, store):
            each.scatter(torch.tensor(members), new(seed, len(members)))
    for a, b in zip(everything(plain), everything(store), strict=True):
        assert torch.equal(a, b)
    assert store.seen().tolist() == [0, 3, 5, 8] and store.places(torch.tensor([3, 4])).tolist() == [1, 8]
    for asked, copied in (([3, 0, 5], False), ([0, 3, 5], True), ([8, 3], False), ([3, 8], True)):
        members = torch.tensor(asked)
        with store.reading(members) as (states, _):
            assert (states.model["w"]._base is store._rows[0]) != copied
            assert torch.equal(states.model["w"], store.gather(members).model["w"])
    for a, b in zip(tree_leaves(plain.saved()["states"]), tree_leaves(store.saved()["states"]), strict=True):
        assert torch.equal(torch.cat(list(a.blocks())), torch.cat(list(b.blocks())))
    for each in (plain, store):  # an entry that comes later
        each.scatter(torch.tensor([5]), (new(2, 1), {"late": torch.ones(1, 4)}))
    for a, b in zip(everything(plain), everything(store), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("members", [[2, 3], [0]])
def test_writing_to_what_is_read_is_refused(members: list[int]) -> None:
    store = Kept(FIRST, PEOPLE)
    store.scatter(torch.tensor([2, 3]), new(1, 2))
    with pytest.raises(RuntimeError, match="written to"), store.reading(torch.tensor(members)) as (states, stacked):
        if stacked:
            vmap(lambda w: w.mul_(1))(states.model["w"])
        else:
            states.model["w"].mul_(1)


@pytest.mark.parametrize("where", ["memory", "paged"])
def test_entries_that_come_later_start_as_zeros(where: str, tmp_path: Path) -> None:
    """As the memories of codecs do, which a client has from its first turn on."""
    store = stores(tmp_path)[where]
    store.scatter(torch.tensor([1]), new(0, 1))
    store.scatter(torch.tensor([4]), (new(1, 1), {"memory": torch.full((1, 3), 5.0)}))
    _, late = store.gather(torch.tensor([1, 4, 7]))
    assert late["memory"].tolist() == [[0] * 3, [5] * 3, [0] * 3]


@pytest.mark.parametrize("where", ["memory", "paged"])
def test_what_is_saved_comes_in_blocks(where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept, "_BLOCK", 80)  # bytes, where a member has 36
    store, seen = stores(tmp_path)[where], torch.tensor([1, 2, 5, 7, 8])
    store.scatter(seen, new(3, 5))
    saved, whole = store.saved(), store.gather(seen)
    assert torch.equal(saved["members"], seen) and isinstance(saved["states"], State)
    for part, leaf in zip(tree_leaves(saved["states"]), tree_leaves(whole), strict=True):
        blocks = list(part.blocks())
        assert [len(block) for block in blocks] == [2, 2, 1] and (part.shape, part.dtype) == (leaf.shape, leaf.dtype)
        assert torch.equal(torch.cat(blocks), leaf)


def test_files_go_with_the_store(tmp_path: Path) -> None:
    store = Kept(FIRST, PEOPLE, tmp_path, budget=0)
    store.scatter(torch.tensor([0]), new(0, 1))
    del store
    assert not list(tmp_path.rglob("*.rows"))


@pytest.mark.parametrize("name", ["scaffold", "fedala", "ditto", "fedproto"])
def test_a_run_on_pages_is_the_run_in_memory(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = train(make(name))

    def paged(first: Any, population: int, folder: Any = None) -> Kept:
        return Kept(first, population, tmp_path, budget=0)

    monkeypatch.setattr(here, "Kept", paged)
    federation = start(make(name))
    assert list(tmp_path.rglob("*.rows"))
    assert gap(plain, train(make(name), federation=federation)) == 0


def test_the_order_of_entries_does_not_matter() -> None:
    store = Kept({"a": torch.zeros(2), "b": torch.ones(2)}, 3)
    store.scatter(torch.tensor([1]), {"b": torch.full((1, 2), 5.0), "a": torch.full((1, 2), 4.0)})
    found = store.gather(torch.tensor([0, 1]))
    assert found["a"].tolist() == [[0, 0], [4, 4]] and found["b"].tolist() == [[1, 1], [5, 5]]
