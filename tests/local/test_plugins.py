"""Plug-ins on methods that know nothing of them: the bias eliminator, and blending."""

from __future__ import annotations

import functools
from functools import partial
from typing import Any

import pytest
import torch
from tests.laws.test_wire import turn_of
from tests.laws.toys import CLIENTS, SMALL, gap, groups, kept, make, start
from tests.laws.toys import train as train_toy

from weft.core import Method, SettingError
from weft.core.round import Federation
from weft.executors import Batched, loop
from weft.experiment.assemble import assembled
from weft.experiment.settings import RunSettings
from weft.local.blend import with_blend
from weft.local.buffers import with_buffers
from weft.local.debias import M, P, debiased, with_dbe

WHOLE = ["fedavg", "fedprox", "moon", "scaffold", "feddyn", "fedadam", "ditto", "fedavg-ft"]
DEBIASED = [
    *WHOLE,
    "fedper",
    "fedbn",
    "fednova",
    "fedrep",
    "lg-fedavg",
    "fedala",
    "fedlc",
    "fedntd",
    "fedphp",
    "fml",
    "fedkd",
]
train = partial(train_toy, nets=groups("fedavg"))
OFF: dict[str, Any] = {"kappa": 0.0, "bias_rate": 0.0}


@functools.cache
def bare(name: str) -> Federation:
    """A method without plug-ins."""
    return train(make(name))


def vectors(federation: Federation) -> torch.Tensor:
    """p of every client."""
    own = kept(federation)[0].method
    return own.mine.get(P, own.beside) if isinstance(own.mine, dict) else own.beside


@pytest.mark.parametrize("name", DEBIASED)
def test_the_eliminator_off_is_the_bare_method(name: str) -> None:
    with_it, without = train(with_dbe(make(name), **OFF)), bare(name)
    assert gap(with_it.server.inner, without.server) <= 1e-12
    assert gap(kept(with_it)[0].method.beside, torch.zeros(CLIENTS, SMALL.width)) == 0


@pytest.mark.parametrize("name", DEBIASED)
def test_vectors_learn_and_both_halves_matter(name: str) -> None:
    method = make(name)
    turns: Any = {"rounds": 2, "size": CLIENTS}
    whole = train(with_dbe(method), **turns)
    assert (vectors(whole) != 0).all() and gap(vectors(whole)[0], vectors(whole)[1]) > 1e-6
    assert gap(whole, train(with_dbe(method), loop, **turns)) <= 1e-9
    for half in ({"kappa": 0.0}, {"bias_rate": 0.0}, {"mu": 0.3}):
        assert gap(whole.server.inner, train(with_dbe(method, **half), **turns).server.inner) > 1e-9


@pytest.mark.parametrize("name", DEBIASED)
def test_vectors_are_in_no_message_and_the_mean_is_constant(name: str) -> None:
    method = with_dbe(make(name))
    one, later = train(method, rounds=1), train(method, rounds=2)
    down, reply = turn_of(method, one, torch.tensor([0]), 2)
    without = turn_of(make(name), start(make(name), groups("fedavg")), torch.tensor([0]), 1)[1]
    assert [list(t) for t in reply.up] == [list(t) for t in without.up]
    assert P not in down.model and torch.equal(down.model[M], one.server.mean["mean"])
    assert torch.equal(one.server.mean["mean"], later.server.mean["mean"]) and one.server.mean["mean"].all()


@pytest.mark.parametrize(
    ("name", "why"),
    [
        *((n, "descend") for n in ("apfl", "pfedme", "per-fedavg", "fedrod")),
        *((n, "penalty") for n in ("fedcp", "gpfl", "fedgc")),
        *((n, "begins with") for n in ("feddbe", "fedamd")),
        *((n, "received") for n in ("fedfomo", "ifca", "fedmtl")),
        *((n, "sends a model") for n in ("fedproto", "local", "fedgh")),
    ],
)
def test_the_eliminator_is_refused_where_half_of_it_would_be_missing(name: str, why: str) -> None:
    with pytest.raises(SettingError, match=why):
        train(with_dbe(make(name)), rounds=1)


def test_blending_is_refused_without_a_whole_model() -> None:
    for name in ("fedproto", "fedper", "fedfomo", "fedrep", "feddbe"):
        with pytest.raises(SettingError, match="model"):
            train(with_blend(make(name)), rounds=1)


def test_blending_is_refused_where_the_upload_is_no_change_of_the_model() -> None:
    for name in ("fednova", "fedamd", "fedcp", "fedkd"):
        with pytest.raises(SettingError, match="blending takes"):
            with_blend(make(name))


@pytest.mark.parametrize("name", WHOLE)
def test_blending_with_weights_at_one_is_the_bare_method(name: str) -> None:
    assert gap(train(with_blend(make(name), eta=0.0)).server, bare(name).server) <= 1e-12


@pytest.mark.parametrize("name", WHOLE)
def test_blending_changes_what_is_learnt(name: str) -> None:
    method = with_blend(make(name), passes=12, eta=5.0)
    batched = train(method)
    assert gap(batched, train(method, loop)) <= 1e-9
    assert gap(batched.server, bare(name).server) > 1e-6


def test_blending_in_fedavg_is_fedala() -> None:
    ours, theirs = train(with_blend(make("fedavg"), passes=12)), train(make("fedala"))
    assert gap(ours.server, theirs.server) <= 1e-12
    assert gap(kept(ours)[0].method.beside, kept(theirs)[0].method) <= 1e-12


def test_plugins_go_together_and_with_statistics_at_home() -> None:
    method = with_buffers(with_dbe(with_blend(make("fedprox"), passes=12)), "local")
    assert gap(train(method), train(method, loop)) <= 1e-9


def test_the_opening_is_no_round() -> None:
    """Every client takes part, nobody keeps anything, and the first round begins at the initial model."""
    method: Method = with_dbe(make("fedavg"))
    before, after = start(method), train(method, rounds=1, size=2)
    assert int(after.turns.sum()) == 2
    assert len(after.clients.kept[0].seen()) == 2
    down = method.send(after.server, None)  # type: ignore[arg-type]
    assert not torch.equal(down.model["head.bias"], before.server.model["head.bias"])
    assert gap(after.server.mean, train(method, rounds=1, size=CLIENTS).server.mean) <= 1e-12
    still = train(with_dbe(make("fedavg", lr=0.0)), rounds=1)
    assert still.server.mean["mean"].all()


def test_the_vector_may_be_folded_into_the_bias() -> None:
    net = debiased(SMALL, 1.0, 1.0, 1.0, "test")
    tree, p = SMALL.init(0), torch.randn(SMALL.width, dtype=torch.float64)
    x = torch.randn(4, 5, dtype=torch.float64)
    folded = {**tree, "head.bias": tree["head.bias"] + tree["head.weight"] @ p}
    assert gap(net.apply({**tree, P: p}, x).logits, SMALL.apply(folded, x).logits) < 1e-12


COMPOSED = {
    "dbe": ["fedprox", "scaffold", "ditto", "fedntd", "fml"],
    "blend": ["fedprox", "scaffold", "moon", "fedlc", "fedrod"],
    "topk": ["fedprox", "scaffold", "ditto", "fedbabu", "fedpac"],
}
SETTINGS = {
    "dbe": RunSettings(plug=("dbe",)),
    "blend": RunSettings(plug=("blend:passes=6,eta=5",)),
    "topk": RunSettings(compress="topk:0.2"),
}


@pytest.mark.parametrize(("what", "name"), [(w, n) for w, names in COMPOSED.items() for n in names])
def test_each_composes_with_five_methods_under_all_executors(what: str, name: str) -> None:
    """As settings of a run: the same numbers one by one, all at once and in chunks, and others than without."""
    method = assembled(make(name), SETTINGS[what])
    batched = train(method)
    assert gap(batched, train(method, loop)) <= 1e-9
    assert gap(batched, train(method, Batched(chunk=2))) <= 1e-9
    assert gap(getattr(batched.server, "inner", batched.server), bare(name).server) > 1e-6


def test_the_order_of_words_does_not_matter() -> None:
    one, other = (assembled(make("fedprox"), RunSettings(plug=p)) for p in (("dbe", "blend"), ("blend", "dbe")))
    assert gap(train(one), train(other)) == 0


def test_the_eliminator_and_statistics_at_home_are_refused_with_unlike_networks() -> None:
    for name in ("fml", "fedkd"):
        with pytest.raises(SettingError, match="unlike networks"):
            train_toy(with_dbe(make(name)), rounds=1)
        with pytest.raises(SettingError, match="unlike clients"):
            train_toy(with_buffers(make(name), "local"), rounds=1)
        assert gap(train(with_buffers(make(name), "local")), train(with_buffers(make(name), "local"), loop)) <= 1e-9
