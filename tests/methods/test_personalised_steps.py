"""The personalised methods against their numpy references: several rounds of a ragged federation, every executor."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from bridge import answer, close, examples_of, kept, net_of, run, turn_of
from reference import apfl as ref_apfl
from reference import fedala as ref_fedala
from reference import per_fedavg as ref_per_fedavg
from reference.central import central as ref_central
from reference.ditto import ditto as ref_ditto
from reference.fedavg import fedavg as ref_fedavg
from reference.fedavg_ft import finetune
from reference.fedbn import fedbn as ref_fedbn
from reference.fedper import fedper as ref_fedper
from reference.fedper import joined
from reference.fedrep import fedrep as ref_fedrep
from reference.lg_fedavg import lg_fedavg as ref_lg_fedavg
from reference.local import local as ref_local
from reference.model import BnMlp, Mlp, Tree
from reference.pfedme import pfedme as ref_pfedme
from reference.world import Outcome, World, make_world, pooled
from reference.world import Turn as RefTurn

from weft.core import (
    Batch,
    Data,
    Fit,
    Method,
    Model,
    Net,
    Phase,
    Reply,
    SettingError,
    Task,
    Turn,
    delta,
    each,
    everything,
    mean,
    nothing,
    role,
    tune,
)
from weft.core.clients import Group
from weft.core.here import Here
from weft.core.round import begin, play
from weft.core.turn import Execute
from weft.executors import Batched, loop
from weft.local import SGD, descend, prox, scan
from weft.local.blend import ala_phases, blend, learn_weights
from weft.methods.apfl import apfl
from weft.methods.central import central
from weft.methods.ditto import ditto
from weft.methods.fedala import fedala
from weft.methods.fedavg import fedavg
from weft.methods.fedavg_ft import fedavg_ft
from weft.methods.fedbn import fedbn
from weft.methods.fedper import fedper
from weft.methods.fedprox import fedprox
from weft.methods.fedrep import fedrep
from weft.methods.lg_fedavg import lg_fedavg
from weft.methods.local import local
from weft.methods.per_fedavg import per_fedavg
from weft.methods.pfedme import pfedme
from weft.server import plain

PASSES = 7
MOMENTUM: dict[str, Any] = {"momentum": 0.9, "weight_decay": 0.01}
BOTH = ("local", "personal")
ALL_ALA = ("local", "ala", "start")
Pairs = Iterator[tuple[Any, Any]]


def tree(own: Any, out: Outcome, i: int) -> Pairs:
    """The client keeps one tree."""
    yield own, out.kept[i]


def blending(own: Any, out: Outcome, i: int) -> Pairs:
    """The client keeps a model and the weights of its upper layers."""
    yield from zip(own, out.kept[i], strict=True)


def mixing(own: Any, out: Outcome, i: int) -> Pairs:
    """The client keeps two models and their share."""
    v, alpha = out.kept[i]
    yield own.pair.v, v
    yield own.pair.w, out.extra["local"][i]
    yield {"alpha": own.alpha}, {"alpha": alpha}


def joint(world: World, out: Outcome, i: int) -> Tree:
    """Answers with the shared layers and its own."""
    return joined(world, out.model or {}, out.kept[i])


def private(world: World, out: Outcome, i: int) -> Tree:
    """Answers with what it keeps, if it ever had a turn."""
    own: Tree = out.kept[i] if out.model is None or any(i in t.ids for t in world.turns) else out.model
    return own


def mixture(world: World, out: Outcome, i: int) -> Tree:
    """Answers with the mixture of its two models, if it ever had a turn."""
    if all(i not in t.ids for t in world.turns):
        return out.model or {}
    return ref_apfl.mixture(out.kept[i][0], out.extra["local"][i], out.kept[i][1])


def blended(world: World, out: Outcome, i: int) -> Tree:
    """Answers with the present model blended into its own."""
    return ref_fedala.blend(out.model or {}, *out.kept[i])


class Case(NamedTuple):
    """A method, its reference with the same settings, what to compare, and the tree with which a client answers."""

    ours: Method
    theirs: Callable[[World], Outcome]
    phases: tuple[str, ...] = ("local",)
    own: Callable[[World, Outcome, int], Tree] | None = None
    look: Callable[[Any, Outcome, int], Pairs] = tree
    norm: bool = False


ALA: dict[str, Any] = {"eta": 0.7, "num_pre_loss": 2, "threshold": 0.005}
CASES = {
    "local": Case(
        local(lr=0.1, **MOMENTUM),
        lambda w: ref_local(w, lr=0.1, match_participation=True, **MOMENTUM),
        own=private,
        norm=True,
    ),
    "fedper": Case(fedper(lr=0.1, **MOMENTUM), lambda w: ref_fedper(w, lr=0.1, **MOMENTUM), own=joint),
    "fedper norm": Case(fedper(lr=0.1), lambda w: ref_fedper(w, lr=0.1), own=joint, norm=True),
    "fedbn": Case(fedbn(lr=0.1), lambda w: ref_fedbn(w, lr=0.1), own=joint, norm=True),
    "lg-fedavg": Case(lg_fedavg(lr=0.1), lambda w: ref_lg_fedavg(w, lr=0.1), own=joint, norm=True),
    "fedrep": Case(fedrep(lr=0.1, **MOMENTUM), lambda w: ref_fedrep(w, lr=0.1, **MOMENTUM), ("head", "body"), joint),
    "fedrep norm": Case(
        tune(fedrep(lr=0.1), "model", reduce=mean),
        lambda w: ref_fedrep(w, lr=0.1, weighting="examples"),
        ("head", "body"),
        joint,
        norm=True,
    ),
    "ditto": Case(
        ditto(lr=0.1, lam=0.7, personal=SGD(0.05)),
        lambda w: ref_ditto(w, lr=0.1, lam=0.7, lr_personal=0.05),
        BOTH,
        private,
    ),
    "ditto norm": Case(
        ditto(lr=0.1, lam=0.7, **MOMENTUM),
        lambda w: ref_ditto(w, lr=0.1, lam=0.7, **MOMENTUM),
        BOTH,
        private,
        norm=True,
    ),
    "apfl": Case(
        apfl(lr=0.1, alpha=0.3, lr_alpha=0.2),
        lambda w: ref_apfl.apfl(w, lr=0.1, alpha=0.3, lr_alpha=0.2),
        own=mixture,
        look=mixing,
    ),
    "apfl clipped": Case(
        apfl(lr=0.1, lr_alpha=20.0), lambda w: ref_apfl.apfl(w, lr=0.1, lr_alpha=20.0), own=mixture, look=mixing
    ),
    "per-fedavg": Case(
        per_fedavg(lr=0.1, alpha=0.2), lambda w: ref_per_fedavg.per_fedavg(w, alpha=0.2, beta=0.1), ("inner", "outer")
    ),
    "per-fedavg HF": Case(
        per_fedavg(lr=0.1, alpha=0.2, mode="HF"),
        lambda w: ref_per_fedavg.per_fedavg(w, alpha=0.2, beta=0.1, variant="hf"),
        ("inner", "outer", "hessian"),
    ),
    "pfedme": Case(
        pfedme(lr=0.02, lam=5.0, inner_steps=3, lr_inner=0.07, beta=1.5),
        lambda w: ref_pfedme(w, lam=5.0, K=3, lr_p=0.07, eta=0.02, beta=1.5),
        own=private,
    ),
    "pfedme nu": Case(
        pfedme(lr=0.02, lam=5.0, inner_steps=6, lr_inner=0.1, nu=0.3),
        lambda w: ref_pfedme(w, lam=5.0, K=6, lr_p=0.1, eta=0.02, nu=0.3),
        own=private,
    ),
    "fedala": Case(
        fedala(lr=0.1, max_passes=PASSES, **ALA),
        lambda w: ref_fedala.fedala(w, lr=0.1, passes=PASSES, **ALA),
        ALL_ALA,
        blended,
        blending,
    ),
    "fedala norm": Case(
        fedala(lr=0.1, max_passes=PASSES, **ALA),
        lambda w: ref_fedala.fedala(w, lr=0.1, passes=PASSES, **ALA),
        ALL_ALA,
        blended,
        blending,
        norm=True,
    ),
}


def world_of(case: Case, seed: int, rounds: int = 4) -> World:
    """A ragged federation with the batches that the case needs."""
    drawn = tuple(p for p in case.phases if p != "start")
    world = make_world(seed, rounds=rounds, phases=drawn, model=BnMlp if case.norm else Mlp)
    if "inner" in drawn:
        world = ref_per_fedavg.equal_steps(world)
    return ref_fedala.with_start(world, PASSES) if "start" in case.phases else world


@pytest.mark.parametrize(
    ("execute", "seed"), [(loop, 0), (Batched(2), 0), (Batched(), 1)], ids=["loop", "chunked", "batched"]
)
@pytest.mark.parametrize("name", CASES)
def test_equals_its_reference(name: str, execute: Execute, seed: int) -> None:
    case = CASES[name]
    world = world_of(case, seed)
    out, fed = case.theirs(world), run(world, case.ours, execute)
    if out.model is not None:
        close(fed.server.model, out.model)
    own = kept(fed)
    for i in out.kept:
        for ours, theirs in case.look(own[i], out, i):
            close(ours, theirs)


@pytest.mark.parametrize("name", [n for n, c in CASES.items() if c.own is not None])
def test_answers_with_its_personal_model(name: str) -> None:
    case = CASES[name]
    assert case.own is not None
    world = world_of(case, 0, rounds=2)
    world = replace(world, turns=[replace(t, ids=[i for i in t.ids if i != 1]) for t in world.turns])
    out, fed = case.theirs(world), run(world, case.ours, loop)
    for i in range(world.population):
        near(answer(fed, world, i), world.model.logits(case.own(world, out, i), world.x[i]))
    if "global" in fed.method.views:
        near(answer(fed, world, 0, "global"), world.model.logits(out.model or {}, world.x[0]))


def near(ours: Any, theirs: Any) -> None:
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-9)


def test_the_alphas_of_apfl_move_and_are_clipped() -> None:
    world = world_of(CASES["apfl"], 0)
    free = [kept(run(world, CASES["apfl"].ours, loop))[i].alpha.item() for i in world.turns[-1].ids]
    assert all(0 < a < 1 and a != 0.3 for a in free)
    tight = [kept(run(world, CASES["apfl clipped"].ours, loop))[i].alpha.item() for i in world.turns[-1].ids]
    assert any(a in (0.0, 1.0) for a in tight)


@pytest.mark.parametrize("alpha", [0.0, 0.4, 1.0])
def test_the_common_branch_of_apfl_is_fedavg_bit_for_bit(alpha: float) -> None:
    world = make_world(0, model=BnMlp)
    opt = SGD(0.1, momentum=0.5, clip=0.3)
    common = run(world, apfl(opt, alpha=alpha, lr_alpha=0.2), Batched()).server.model
    alone = run(world, tune(fedavg(opt), "model", reduce=plain), Batched()).server.model
    assert all(torch.equal(common[k], alone[k]) for k in alone)


def test_the_mixture_of_apfl_has_running_statistics_of_its_own() -> None:
    world, method = make_world(0, rounds=1, model=BnMlp), apfl(lr=0.5, alpha=0.3, lr_alpha=0.0)
    i = world.turns[0].ids[0]
    rows = world.turns[0].batches[i]["local"][:2]

    def mixed_after(steps: int) -> Tree:
        fed = run(replace(world, turns=[RefTurn([i], {i: {"local": rows[:steps]}})]), method, loop)
        w, v = ({k: x.numpy() for k, x in tree.items()} for tree in kept(fed)[i].pair)
        own = ref_apfl.mixture(v, w, 0.3) | {k: v[k] for k in v if "running" in k}
        near(answer(fed, world, i), BnMlp.logits(own, world.x[i]))
        return own

    one, two = mixed_after(1), mixed_after(2)
    want = BnMlp.carry(one, world.x[i][rows[1]])
    near([two[k] for k in want], [want[k] for k in want])


def test_the_start_phase_of_fedala_ends_at_different_passes() -> None:
    world = world_of(CASES["fedala"], 0)
    lengths = {len(v) for v in CASES["fedala"].theirs(world).extra["losses"].values()}
    assert min(lengths) < PASSES and len(lengths) > 1


def test_central_is_fedavg_of_one_client_with_everything() -> None:
    world = pooled(make_world(0))
    close(run(world, central(lr=0.1), loop).server.model, ref_central(make_world(0), lr=0.1).model or {})
    assert central().needs == {"pooled data"}


@pytest.mark.parametrize("batch_norm", [False, True])
def test_fine_tuning_answers_after_the_batches_of_its_phase(batch_norm: bool) -> None:
    world = make_world(0, model=BnMlp if batch_norm else Mlp)
    got, w = run(world, fedavg_ft(lr=0.1, momentum=0.5), loop), ref_fedavg(world, lr=0.1, momentum=0.5).model or {}
    close(got.server.model, w)
    rows = (np.array([0, 2, 3]), np.array([1, 4]))
    own = finetune(world, 3, w, list(rows), lr=0.1, momentum=0.5)
    near(answer(got, world, 3, adapt=rows), world.model.logits(own, world.x[3]))
    near(answer(got, world, 3), world.model.logits(w, world.x[3]))


@pytest.mark.parametrize("mode", ["FO", "HF"])
def test_per_fedavg_answers_after_one_step_of_rate_alpha(mode: str) -> None:
    case = CASES["per-fedavg" if mode == "FO" else "per-fedavg HF"]
    world = world_of(case, 0)
    got, w = run(world, case.ours, loop), case.theirs(world).model or {}
    own = ref_per_fedavg.adapt(world, 2, w, np.array([0, 3]), alpha=0.2)
    answered = answer(got, world, 2, adapt=(np.array([0, 3]),))
    near(answered, Mlp.logits(own, world.x[2]))


def test_per_fedavg_moves_running_statistics_once_a_step_by_the_inner_pass() -> None:
    world = make_world(0, rounds=1, phases=("inner", "outer", "hessian"), model=BnMlp)
    i = world.turns[0].ids[0]
    rows = {name: [b[name][0]] for b in [world.turns[0].batches[i]] for name in b}
    world = replace(world, turns=[replace(world.turns[0], ids=[i], batches={i: rows})])
    got = run(world, per_fedavg(lr=0.1, mode="HF"), loop).server.model
    want = BnMlp.carry(world.first, world.x[i][rows["inner"][0]])
    close({k: got[k] for k in want}, want)


def test_pfedme_does_not_extrapolate_running_statistics() -> None:
    world = make_world(0, rounds=1, model=BnMlp)
    one, two = (run(world, pfedme(beta=b), loop).server.model for b in (1.0, 2.0))
    for name in one:
        first = torch.from_numpy(world.first[name])
        factor = 1.0 if "running" in name else 2.0
        torch.testing.assert_close(two[name] - first, factor * (one[name] - first), rtol=0, atol=1e-12)


@pytest.mark.parametrize("batch_norm", [False, True])
def test_neutral_settings_are_equal_bit_for_bit(batch_norm: bool) -> None:
    world = make_world(0, phases=("local", "personal", "ala"), model=BnMlp if batch_norm else Mlp)
    world = ref_fedala.with_start(world, PASSES)
    model = run(world, fedavg(lr=0.1), loop).server.model
    same: list[Method] = [
        fedper(lr=0.1, keep=nothing),
        fedbn(lr=0.1, keep=nothing),
        lg_fedavg(lr=0.1, keep=nothing),
        ditto(lr=0.1, lam=3.0),
        fedala(lr=0.1, eta=0.0, max_passes=PASSES),
        fedavg_ft(lr=0.1),
        central(lr=0.1),
        *([] if batch_norm else [fedbn(lr=0.1)]),
    ]
    for method in same:
        other = run(world, method, loop).server.model
        assert all(torch.equal(model[k], other[k]) for k in model), method.name
    alone = run(world, local(lr=0.1), loop)
    for method in (fedper(lr=0.1, keep=everything), lg_fedavg(lr=0.1, keep=everything)):
        other = run(world, method, loop)
        assert other.server.model == {}
        for i in range(world.population):
            assert all(torch.equal(v, kept(other)[i][k]) for k, v in kept(alone)[i].items())


def test_what_stays_at_home_is_on_no_channel() -> None:
    world = make_world(0, model=BnMlp)
    net = net_of(world)
    first = net.init(0)
    norm = {"norm.weight", "norm.bias", "norm.running_mean", "norm.running_var"}
    head = {"head.weight", "head.bias"}
    for method, home in (
        (fedper(), head),
        (fedrep(), head),
        (fedbn(), norm),
        (fedbn(keep=role("norm")), norm),
        (lg_fedavg(), set(first) - head),
        (fedper(keep=role("head") | role("norm")), head | norm),
    ):
        assert set(method.client(net, first)) == home
        assert set(method.server(net, first).model) == set(first) - home
    assert local().up == {} and run(world, local(), loop).server == ()


def test_lg_fedavg_takes_different_networks_under_one_head() -> None:
    world = make_world(0)
    wide = Net.from_module(
        lambda: torch.nn.Sequential(
            torch.nn.Linear(3, 9), torch.nn.ReLU(), torch.nn.Linear(9, 4), torch.nn.Linear(4, 4)
        ),
        head="3",
        dtype=torch.float64,
    )
    small = Net.from_module(
        lambda: torch.nn.Sequential(
            *(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Identity(), torch.nn.Linear(4, 4))
        ),
        head="3",
        dtype=torch.float64,
    )
    groups = [Group(wide, torch.tensor([0, 2])), Group(small, torch.tensor([1, 3, 4]))]

    def draw(number: int, ids: torch.Tensor, phases: Any, past: torch.Tensor) -> Turn:
        return turn_of(world, world.turns[0].batches, ids, phases, past)

    method = lg_fedavg(lr=0.1)
    state = begin(method, Here.begin(method, groups, examples_of(world), draw, Batched()), 5)
    after = play(state, 1, torch.arange(5)).federation
    assert set(after.server.model) == {"3.weight", "3.bias"}
    assert not torch.equal(after.server.model["3.weight"], state.server.model["3.weight"])


def test_phases_of_unequal_length_are_not_scanned_together() -> None:
    world = make_world(0, phases=("inner", "outer"))
    batches = {0: {"inner": [np.array([0])] * 2, "outer": [np.array([0])]}}
    drawn = turn_of(world, batches, torch.tensor([0]), {"inner": Phase(), "outer": Phase()}, torch.tensor([0]))
    data = Data(examples_of(world), torch.utils._pytree.tree_map(lambda v: v[0], drawn))
    with pytest.raises(SettingError, match="'inner' has 2, 'outer' has 1"):
        scan(lambda carry, batch: carry, torch.zeros(()), data, phase=("inner", "outer"))


def fedprox_from_a_blend(mu: float) -> Method:
    """FedProx whose local training starts from a learnt blend; the anchor stays the received model."""

    def work(net: Net, task: Task[Any, Any]) -> Reply[Any, Any]:
        got, (own, weights), data = task.down.model, task.mine, task.data

        def loss(w: Any, batch: Batch, anchor: Any) -> Fit:
            value, buffers = net.loss(w, batch)
            return Fit(value + prox(net, w, anchor, mu), buffers)

        weights = learn_weights(net, got, own, weights, data, eta=1.0, passes=3, window=2, threshold=0.0)
        trained = descend(net, blend(got, own, weights), data, loss, SGD(0.1), given=(got,)).params
        return Reply(Model(delta(trained, got)), (trained, weights), data.count)

    def client(net: Net, first: Any) -> Any:
        return first, each(torch.ones_like, net.split(net.learnable(first), role("head"))[0])

    phases = {"local": Phase(), **ala_phases(0.8, 3)}
    return replace(fedprox(mu=mu), work=work, client=client, phases=phases)


def test_blending_is_a_part_for_other_methods() -> None:
    drawn = ref_fedala.with_start(make_world(0, rounds=4, phases=("local", "ala")), 3)
    free, tied, plain = (
        run(drawn, m, Batched()).server.model
        for m in (fedprox_from_a_blend(0.0), fedprox_from_a_blend(2.0), fedprox(lr=0.1, mu=2.0))
    )
    want = ref_fedala.fedala(drawn, lr=0.1, passes=3, num_pre_loss=2, threshold=0.0).model or {}
    close(free, want)
    assert all(not torch.allclose(tied[k], free[k]) and not torch.allclose(tied[k], plain[k]) for k in free)
