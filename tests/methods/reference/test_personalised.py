"""The personalised references against the papers' own invariants, closed forms and exact derivatives."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from .apfl import apfl, mixture
from .descent import descend, mean
from .ditto import ditto
from .fedala import ala_pass, blend, fedala, start_phase, with_start
from .fedavg import fedavg
from .fedavg_ft import finetune
from .fedbn import fedbn
from .fedper import fedper, head
from .fedrep import fedrep, moving
from .lg_fedavg import lg_fedavg
from .local import local
from .model import Array, BnMlp, Mlp, Quadratic, Tree
from .per_fedavg import adapt, equal_steps, hessian_product, per_fedavg
from .pfedme import pfedme
from .world import Turn, World, make_world

SEEDS = (0, 1, 2)
NORM = {"norm.weight", "norm.bias", "norm.running_mean", "norm.running_var"}


def near(a: Tree, b: Tree, rtol: float = 0.0, atol: float = 1e-12) -> None:
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_allclose(a[name], b[name], rtol=rtol, atol=atol, err_msg=name)


def same(a: Tree, b: Tree) -> bool:
    return a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)


def part(p: Tree, names: Any) -> Tree:
    return {name: p[name] for name in names}


def body(p: Tree) -> Tree:
    return {name: value for name, value in p.items() if not head(name)}


def top(p: Tree) -> Tree:
    return {name: value for name, value in p.items() if head(name)}


def absent(world: World, turn: int) -> list[int]:
    return [i for i in range(world.population) if i not in world.turns[turn].ids]


def everybody(world: World) -> World:
    return replace(world, turns=[Turn(list(range(world.population)), t.batches) for t in world.turns])


def until(world: World, turns: int) -> World:
    return replace(world, turns=world.turns[:turns])


def phase(world: World, old: str, new: str) -> World:
    turns = [Turn(t.ids, {i: b | {new: b[old]} for i, b in t.batches.items()}) for t in world.turns]
    return replace(world, turns=turns)


def missing(world: World, client: int) -> World:
    """The world in which everybody takes part in every turn, but for `client` in the second."""
    turns = everybody(world).turns
    turns[1] = Turn([i for i in turns[1].ids if i != client], turns[1].batches)
    return replace(world, turns=turns)


def quadratic(steps: int = 4, clients: int = 2, rounds: int = 1) -> World:
    """One example per client and batch: curvature y, minimiser x."""
    rng = np.random.default_rng(7)
    x = [rng.normal(size=(1, 3)) for _ in range(clients)]
    y = [rng.uniform(0.5, 2.0, 1) for _ in range(clients)]
    batches = {i: {"local": [np.array([0])] * steps, "personal": [np.array([0])] * steps} for i in range(clients)}
    turns = [Turn(list(range(clients)), batches) for _ in range(rounds)]
    return World(x, y, {"w": rng.normal(size=3)}, turns, clients, Quadratic)


# FedPer, LG-FedAvg, FedBN


@pytest.mark.parametrize("seed", SEEDS)
def test_fedper_limits_are_fedavg_and_local(seed: int) -> None:
    world = make_world(seed)
    nothing = fedper(world, lr=0.1, keep=lambda name: False)
    everything = fedper(world, lr=0.1, keep=lambda name: True)
    assert nothing.model is not None and everything.model == {}
    near(nothing.model, fedavg(world, lr=0.1).model or {})
    alone = local(world, lr=0.1, match_participation=True)
    for i in range(world.population):
        assert nothing.kept[i] == {}
        assert same(everything.kept[i], alone.kept[i])


@pytest.mark.parametrize("seed", SEEDS)
def test_fedper_first_turn_by_hand(seed: int) -> None:
    world = until(make_world(seed), 1)
    ids = world.turns[0].ids
    trained = {i: descend(world, i, world.first, world.turns[0].batches[i]["local"], lr=0.1) for i in ids}
    n = sum(len(world.y[i]) for i in ids)
    got = fedper(world, lr=0.1)
    for name in body(world.first):
        want = np.sum([len(world.y[i]) / n * trained[i][name] for i in ids], axis=0)
        np.testing.assert_allclose((got.model or {})[name], want, atol=1e-12)
    for i in range(world.population):
        assert same(got.kept[i], top(trained[i] if i in ids else world.first))
    uniform = fedper(world, lr=0.1, weighting="uniform")
    near(uniform.model or {}, body(mean([trained[i] for i in ids])))


def test_fedper_second_turn_starts_from_the_new_body_and_the_old_head() -> None:
    world = until(make_world(0), 2)
    before, after = fedper(until(world, 1), lr=0.1), fedper(world, lr=0.1)
    for i in world.turns[1].ids:
        start = {**(before.model or {}), **before.kept[i]}
        p = descend(world, i, start, world.turns[1].batches[i]["local"], lr=0.1)
        near(after.kept[i], top(p))


def test_an_absent_client_keeps_its_head() -> None:
    world = missing(make_world(1), 2)
    for method in (fedper, lg_fedavg):
        one, two = method(until(world, 1), lr=0.1), method(until(world, 2), lr=0.1)
        assert [i for i in one.kept if same(one.kept[i], two.kept[i])] == [2]


def test_lg_fedavg_is_fedper_with_body_and_head_swapped() -> None:
    world = make_world(2)
    got = lg_fedavg(world, lr=0.1)
    mirrored = fedper(world, lr=0.1, keep=lambda name: name.startswith("body."))
    assert got.model is not None and got.model.keys() == top(world.first).keys()
    assert same(got.model, mirrored.model or {})
    assert got.kept[0].keys() == body(world.first).keys() and same(got.kept[0], mirrored.kept[0])
    near(lg_fedavg(world, lr=0.1, shared=lambda name: True).model or {}, fedavg(world, lr=0.1).model or {})


def test_one_client_trains_alone() -> None:
    world = make_world(3, clients=1)
    alone = local(world, lr=0.1).kept[0]
    for method in (fedper, lg_fedavg):
        got = method(world, lr=0.1)
        near({**got.kept[0], **(got.model or {})}, alone)


def test_fedbn_without_batch_norm_is_fedavg() -> None:
    world = make_world(0)
    got = fedbn(world, lr=0.1)
    assert got.kept == {i: {} for i in range(world.population)}
    near(got.model or {}, fedavg(world, lr=0.1).model or {})


@pytest.mark.parametrize("seed", SEEDS)
def test_fedbn_keeps_batch_norm_at_home(seed: int) -> None:
    world = until(make_world(seed, model=BnMlp), 2)
    before, after = fedbn(until(world, 1), lr=0.1), fedbn(world, lr=0.1)
    assert after.model is not None and not NORM & after.model.keys()
    sent = []
    for i in range(world.population):
        assert after.kept[i].keys() == NORM
        if i in world.turns[1].ids:
            p = descend(
                world, i, {**(before.model or {}), **before.kept[i]}, world.turns[1].batches[i]["local"], lr=0.1
            )
            near(after.kept[i], part(p, NORM))
            sent.append(part(p, after.model))
        else:
            assert same(after.kept[i], before.kept[i])
    near(after.model, mean(sent, world.counts(world.turns[1].ids)))
    a, b = world.turns[0].ids[:2]
    assert all(not np.array_equal(before.kept[a][name], before.kept[b][name]) for name in NORM)


# FedRep


def rep_world(seed: int, model: Any = Mlp) -> World:
    return make_world(seed, phases=("head", "body"), model=model)


@pytest.mark.parametrize("model", [Mlp, BnMlp])
def test_fedrep_freezes_the_other_part(model: Any) -> None:
    world = rep_world(0, model)
    steps = world.turns[0].batches[0]
    sgd: dict[str, Any] = {"lr": 0.1, "momentum": 0.5, "weight_decay": 0.01}
    p = descend(moving(world, head), 0, world.first, steps["head"], **sgd)
    assert same(body(p), body(world.first)) and not same(top(p), top(world.first))
    q = descend(moving(world, lambda name: not head(name)), 0, p, steps["body"], **sgd)
    assert same(top(q), top(p))
    assert all(not np.array_equal(q[name], p[name]) for name in body(p))


@pytest.mark.parametrize("seed", SEEDS)
def test_fedrep_first_turn_by_hand(seed: int) -> None:
    world = until(rep_world(seed), 1)
    bodies = []
    got = fedrep(world, lr=0.1)
    for i in world.turns[0].ids:
        p = dict(world.first)
        for name, moves in (("head", top), ("body", body)):
            for rows in world.turns[0].batches[i][name]:
                g = Mlp.grad(p, world.x[i][rows], world.y[i][rows])
                p = p | {m: p[m] - 0.1 * g[m] for m in moves(p)}
        near(got.kept[i], top(p))
        bodies.append(body(p))
    near(got.model or {}, mean(bodies))
    near(fedrep(world, lr=0.1, weighting="examples").model or {}, mean(bodies, world.counts(world.turns[0].ids)))


def test_fedrep_limits() -> None:
    world = rep_world(1)
    no_body = replace(
        world, turns=[Turn(t.ids, {i: b | {"body": []} for i, b in t.batches.items()}) for t in world.turns]
    )
    near(fedrep(no_body, lr=0.1).model or {}, body(world.first), atol=1e-15)
    headless = fedrep(phase(world, "body", "local"), lr=0.1, keep=lambda name: False, weighting="examples")
    near(headless.model or {}, fedavg(phase(world, "body", "local"), lr=0.1).model or {})
    one, two = (fedrep(until(missing(world, 2), t), lr=0.1) for t in (1, 2))
    assert [i for i in one.kept if same(one.kept[i], two.kept[i])] == [2]


def test_fedrep_head_phase_lowers_the_convex_head_loss() -> None:
    world = rep_world(2)
    everything = [np.arange(len(world.y[0]))] * 20
    p = descend(moving(world, head), 0, world.first, everything, lr=0.05)
    assert Mlp.loss(p, world.x[0], world.y[0]) < Mlp.loss(world.first, world.x[0], world.y[0])


# Ditto


def ditto_world(seed: int, model: Any = Mlp) -> World:
    return make_world(seed, phases=("local", "personal"), model=model)


@pytest.mark.parametrize("model", [Mlp, BnMlp])
@pytest.mark.parametrize("lam", [0.0, 0.5, 3.0])
def test_ditto_global_branch_is_fedavg(lam: float, model: Any) -> None:
    world = ditto_world(0, model)
    near(ditto(world, lr=0.1, lam=lam).model or {}, fedavg(world, lr=0.1).model or {})


@pytest.mark.parametrize("model", [Mlp, BnMlp])
def test_ditto_without_pull_is_local_training(model: Any) -> None:
    world = ditto_world(1, model)
    alone = local(phase(world, "personal", "local"), lr=0.05, match_participation=True)
    got = ditto(world, lr=0.1, lr_personal=0.05, lam=0.0)
    for i in range(world.population):
        near(got.kept[i], alone.kept[i])


def test_ditto_step_pulls_towards_the_received_model() -> None:
    world = until(ditto_world(2), 2)
    before, after = ditto(until(world, 1), lr=0.1, lam=0.7), ditto(world, lr=0.1, lam=0.7)
    anchor = before.model or {}
    for i in range(world.population):
        v = before.kept[i]
        for rows in world.turns[1].batches[i]["personal"] if i in world.turns[1].ids else []:
            g = Mlp.grad(v, world.x[i][rows], world.y[i][rows])
            v = {name: v[name] - 0.1 * (g[name] + 0.7 * (v[name] - anchor[name])) for name in v}
        near(after.kept[i], v)


def test_ditto_quadratic_fixed_point_and_one_step_pull() -> None:
    world = quadratic(steps=400)
    got = ditto(world, lr=0.2, lam=1.5)
    for i in range(2):
        a, b = world.y[i][0], world.x[i][0]
        np.testing.assert_allclose(got.kept[i]["w"], (a * b + 1.5 * world.first["w"]) / (a + 1.5), atol=1e-10)
    flat = replace(quadratic(steps=1, rounds=2), y=[np.zeros(1), np.zeros(1)])
    moved = replace(flat, first={"w": np.array([3.0, -1.0, 2.0])})
    near(ditto(moved, lr=0.1, lam=10.0).kept[0], moved.first)


# APFL


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("setting", [(0.0, 0.0), (0.5, 0.1), (1.0, 0.0)])
def test_apfl_global_branch_is_uniform_fedavg(seed: int, setting: tuple[float, float]) -> None:
    world, (alpha, rate) = make_world(seed), setting
    got = apfl(world, lr=0.1, alpha=alpha, lr_alpha=rate)
    near(got.model or {}, fedavg(world, lr=0.1, weighting="uniform").model or {})
    near(
        apfl(world, lr=0.1, alpha=alpha, lr_alpha=rate, weighting="examples").model or {},
        fedavg(world, lr=0.1).model or {},
    )


def test_apfl_fixed_alpha_limits() -> None:
    world = make_world(1)
    frozen, free = apfl(world, lr=0.1, alpha=0.0), apfl(world, lr=0.1, alpha=1.0)
    alone = local(world, lr=0.1, match_participation=True)
    for i in range(world.population):
        v, alpha = frozen.kept[i]
        assert alpha == 0.0 and same(v, world.first)
        near(mixture(v, frozen.extra["local"][i], alpha), frozen.extra["local"][i])
        v, alpha = free.kept[i]
        assert alpha == 1.0
        near(v, alone.kept[i])
    unscaled = apfl(world, lr=0.1, alpha=0.0, scale_by_alpha=False)
    assert not same(unscaled.kept[world.turns[0].ids[0]][0], world.first)


def test_apfl_gradients_are_those_of_the_mixture() -> None:
    """One step of the second turn against central differences in v and alpha."""
    world = make_world(0)
    before = apfl(until(world, 1), lr=0.3, alpha=0.4)
    i = next(i for i in world.turns[1].ids if i in world.turns[0].ids)
    steps = world.turns[1].batches[i]["local"]
    single = {**world.turns[1].batches, i: {"local": steps[:1]}}
    after = apfl(replace(world, turns=[world.turns[0], Turn([i], single)]), lr=0.3, alpha=0.4, lr_alpha=0.0)
    (v, _), (new, _), w = before.kept[i], after.kept[i], before.model or {}
    x, y = world.x[i][steps[0]], world.y[i][steps[0]]

    def f(v: Tree, alpha: float) -> float:
        return Mlp.loss(mixture(v, w, alpha), x, y)

    h = 1e-5
    for name in v:
        unit = np.zeros_like(v[name])
        unit.flat[1] = h
        slope = (f(v | {name: v[name] + unit}, 0.4) - f(v | {name: v[name] - unit}, 0.4)) / (2 * h)
        np.testing.assert_allclose(new[name].flat[1], v[name].flat[1] - 0.3 * slope, atol=1e-8)
    slope = (f(v, 0.4 + h) - f(v, 0.4 - h)) / (2 * h)
    second = Turn([i], {**world.turns[1].batches, i: {"local": steps}})
    learnt = apfl(replace(world, turns=[world.turns[0], second]), lr=0.3, alpha=0.4, lr_alpha=0.2)
    assert abs(slope) > 1e-3
    np.testing.assert_allclose(learnt.kept[i][1], 0.4 - 0.2 * slope, atol=1e-8)


def test_apfl_later_steps_use_the_new_alpha() -> None:
    world = until(make_world(0), 2)
    i = next(i for i in world.turns[1].ids if i in world.turns[0].ids)
    before, after = (apfl(until(world, t), lr=0.2, alpha=0.5, lr_alpha=0.3) for t in (1, 2))
    w, (v, old), (_, new) = before.model or {}, before.kept[i], after.kept[i]
    assert new != old
    for step, rows in enumerate(world.turns[1].batches[i]["local"]):
        alpha = new if step else old
        x, y = world.x[i][rows], world.y[i][rows]
        at = {name: alpha * v[name] + (1 - alpha) * w[name] for name in w}
        v = {name: v[name] - 0.2 * alpha * g for name, g in Mlp.grad(at, x, y).items()}
        w = {name: w[name] - 0.2 * g for name, g in Mlp.grad(w, x, y).items()}
    near(after.kept[i][0], v)
    near(after.extra["local"][i], w)


@pytest.mark.parametrize("rate", [0.05, 50.0, -50.0])
def test_apfl_alpha_stays_in_the_unit_interval(rate: float) -> None:
    world = make_world(2, rounds=4)
    first, last = (apfl(until(world, t), lr=0.3, alpha=0.5, lr_alpha=rate) for t in (1, 4))
    assert {first.kept[i][1] for i in range(world.population)} == {0.5}
    alphas = [last.kept[i][1] for i in range(world.population)]
    assert all(0.0 <= a <= 1.0 for a in alphas) and any(a != 0.5 for a in alphas)
    if abs(rate) == 50.0:
        assert {0.0, 1.0} & set(alphas)


# Per-FedAvg


def meta_world(seed: int) -> World:
    return equal_steps(make_world(seed, phases=("inner", "outer", "hessian")))


@pytest.mark.parametrize("variant", ["fo", "hf"])
def test_per_fedavg_with_alpha_zero_is_uniform_fedavg(variant: Any) -> None:
    world = meta_world(0)
    want = fedavg(phase(world, "outer", "local"), lr=0.05, weighting="uniform").model or {}
    near(per_fedavg(world, alpha=0.0, beta=0.05, variant=variant).model or {}, want)


@pytest.mark.parametrize("seed", SEEDS)
def test_per_fedavg_first_order_by_hand(seed: int) -> None:
    world = until(meta_world(seed), 1)
    sent = []
    for i in world.turns[0].ids:
        w, phases = world.first, world.turns[0].batches[i]
        for a, b in zip(phases["inner"], phases["outer"], strict=True):
            g = Mlp.grad(w, world.x[i][a], world.y[i][a])
            d = Mlp.grad({n: w[n] - 0.3 * g[n] for n in w}, world.x[i][b], world.y[i][b])
            w = {n: w[n] - 0.05 * d[n] for n in w}
        sent.append(w)
    near(per_fedavg(world, alpha=0.3, beta=0.05).model or {}, mean(sent))
    weighted = mean(sent, world.counts(world.turns[0].ids))
    near(per_fedavg(world, alpha=0.3, beta=0.05, weighting="examples").model or {}, weighted)


def exact_product(w: Tree, d: Tree, x: Array, y: Array) -> Tree:
    """Hessian times d by a complex step, exact to rounding."""
    g = Mlp.grad({name: w[name] + 1e-30j * d[name] for name in w}, x, y)
    return {name: g[name].imag / 1e-30 for name in w}


def test_hessian_product_converges_to_the_exact_one() -> None:
    world = meta_world(1)
    rows = np.arange(len(world.y[0]))
    x, y = world.x[0], world.y[0]
    d = Mlp.grad(world.first, x[:3], y[:3])
    exact, copy = exact_product(world.first, d, x, y), {n: v.copy() for n, v in world.first.items()}
    errors = []
    for delta in (1e-1, 1e-2, 1e-3):
        got = hessian_product(world, 0, world.first, d, rows, delta=delta)
        errors.append(max(float(np.abs(got[name] - exact[name]).max()) for name in got))
    assert same(world.first, copy)
    assert errors[2] < 1e-6 and 80 < errors[0] / errors[1] < 120 and 80 < errors[1] / errors[2] < 120
    double = hessian_product(world, 0, world.first, {n: 2 * v for n, v in d.items()}, rows, delta=1e-2)
    single = hessian_product(world, 0, world.first, d, rows, delta=1e-2)
    near(double, {n: 2 * v for n, v in single.items()}, atol=1e-11)
    nothing = {n: np.zeros_like(v) for n, v in d.items()}
    near(hessian_product(world, 0, world.first, nothing, rows, delta=1e-2), nothing, atol=0.0)


@pytest.mark.parametrize("seed", SEEDS)
def test_per_fedavg_hf_is_the_exact_meta_gradient_on_one_batch(seed: int) -> None:
    """With D = D' = D'' one step follows the gradient of f(w - alpha * grad f(w)), here by differences."""
    world = meta_world(seed)
    i = world.turns[0].ids[0]
    b = [np.arange(len(world.y[i]))]
    one = replace(world, turns=[Turn([i], {i: {"inner": b, "outer": b, "hessian": b}})])
    got = per_fedavg(one, alpha=0.3, beta=1.0, variant="hf", delta=1e-4).model or {}
    w, x, y, h = world.first, world.x[i], world.y[i], 1e-6

    def meta(w: Tree) -> float:
        g = Mlp.grad(w, x, y)
        return Mlp.loss({name: w[name] - 0.3 * g[name] for name in w}, x, y)

    for name in w:
        for k in range(w[name].size):
            unit = np.zeros_like(w[name])
            unit.flat[k] = h
            slope = (meta(w | {name: w[name] + unit}) - meta(w | {name: w[name] - unit})) / (2 * h)
            np.testing.assert_allclose(w[name].flat[k] - got[name].flat[k], slope, atol=5e-9)


def test_per_fedavg_on_a_quadratic() -> None:
    world = quadratic(steps=1, clients=1)
    step = {0: {"inner": [np.array([0])], "outer": [np.array([0])], "hessian": [np.array([0])]}}
    world = replace(world, turns=[Turn([0], step)])
    a, b, w = world.y[0][0], world.x[0][0], world.first["w"]
    d = a * (1 - 0.3 * a) * (w - b)
    fo = per_fedavg(world, alpha=0.3, beta=0.1, variant="fo").model or {}
    hf = per_fedavg(world, alpha=0.3, beta=0.1, variant="hf").model or {}
    np.testing.assert_allclose(fo["w"], w - 0.1 * d, atol=1e-12)
    np.testing.assert_allclose(hf["w"], w - 0.1 * (1 - 0.3 * a) * d, atol=1e-10)


def test_hf_takes_its_hessian_from_the_third_batch() -> None:
    world = meta_world(0)
    other = replace(
        world,
        turns=[
            Turn(t.ids, {i: b | {"hessian": b["hessian"][::-1]} for i, b in t.batches.items()}) for t in world.turns
        ],
    )
    args: dict[str, Any] = {"alpha": 0.3, "beta": 0.05}
    assert same(per_fedavg(world, **args).model or {}, per_fedavg(other, **args).model or {})
    args["variant"] = "hf"
    assert not same(per_fedavg(world, **args).model or {}, per_fedavg(other, **args).model or {})


def test_adapt_and_finetune_take_plain_steps_on_a_copy() -> None:
    world = make_world(0)
    rows, copy = np.array([0, 2]), {n: v.copy() for n, v in world.first.items()}
    near(adapt(world, 1, world.first, rows, alpha=0.0), world.first, atol=0.0)
    g = Mlp.grad(world.first, world.x[1][rows], world.y[1][rows])
    want = {n: world.first[n] - 0.2 * g[n] for n in g}
    near(adapt(world, 1, world.first, rows, alpha=0.2), want)
    near(finetune(world, 1, world.first, [rows], lr=0.2), want)
    g = Mlp.grad(want, world.x[1][[1]], world.y[1][[1]])
    two = finetune(world, 1, world.first, [rows, np.array([1])], lr=0.2)
    near(two, {n: want[n] - 0.2 * g[n] for n in g})
    assert same(world.first, copy)


# pFedMe

ME: dict[str, Any] = {"lam": 5.0, "K": 3, "lr_p": 0.05, "eta": 0.05}


def test_pfedme_quadratic_reaches_the_proximal_point() -> None:
    """With an exact inner solve w takes a gradient step of rate eta on the envelope."""
    world = quadratic(steps=1)
    got = pfedme(world, lam=2.0, K=300, lr_p=0.2, eta=0.1)
    w, moved = world.first["w"], []
    for i in range(2):
        a, b = world.y[i][0], world.x[i][0]
        theta = (a * b + 2.0 * w) / (a + 2.0)
        np.testing.assert_allclose(got.kept[i]["w"], theta, atol=1e-10)
        around = [[0.5 * a * 2.0 / (a + 2.0) * np.sum((w + h * e - b) ** 2) for h in (1e-5, -1e-5)] for e in np.eye(3)]
        slope = np.array([(up - down) / 2e-5 for up, down in around])
        np.testing.assert_allclose(2.0 * (w - theta), slope, atol=1e-8)
        moved.append(w - 0.1 * slope)
    np.testing.assert_allclose((got.model or {})["w"], np.mean(moved, axis=0), atol=1e-8)


@pytest.mark.parametrize("seed", SEEDS)
def test_pfedme_turn_by_hand(seed: int) -> None:
    world = until(make_world(seed), 1)
    got, sent = pfedme(world, **ME), []
    for i in world.turns[0].ids:
        w = theta = world.first
        for rows in world.turns[0].batches[i]["local"]:
            for _ in range(3):
                g = Mlp.grad(theta, world.x[i][rows], world.y[i][rows])
                theta = {n: theta[n] - 0.05 * (g[n] + 5.0 * (theta[n] - w[n])) for n in w}
            w = {n: 0.75 * w[n] + 0.25 * theta[n] for n in w}
        near(got.kept[i], theta)
        assert not same(theta, w)
        sent.append(w)
    near(got.model or {}, mean(sent))
    near(pfedme(world, **ME, weighting="examples").model or {}, mean(sent, world.counts(world.turns[0].ids)))
    for i in absent(world, 0):
        assert same(got.kept[i], world.first)


def test_pfedme_theta_starts_afresh_at_the_received_model_each_turn() -> None:
    world = make_world(0)
    before, after = pfedme(until(world, 1), **ME), pfedme(until(world, 2), **ME)
    second = replace(world, first=before.model or {}, turns=world.turns[1:2])
    again = pfedme(second, **ME)
    for i in world.turns[1].ids:
        near(after.kept[i], again.kept[i])
    one, two = (pfedme(until(missing(world, 2), t), **ME) for t in (1, 2))
    assert [i for i in one.kept if same(one.kept[i], two.kept[i])] == [2]


def test_pfedme_beta_and_eta() -> None:
    world = make_world(1, rounds=1)
    first = world.first
    near(pfedme(world, **ME, beta=0.0).model or {}, first)
    plain = pfedme(world, **ME).model or {}
    over = pfedme(world, **ME, beta=2.0).model or {}
    near(over, {n: 2 * plain[n] - first[n] for n in first})
    still = pfedme(world, **(ME | {"eta": 0.0}))
    near(still.model or {}, first)
    assert not same(still.kept[world.turns[0].ids[0]], first)


def test_pfedme_large_penalty_and_early_stop() -> None:
    world = make_world(2, rounds=1)
    i = world.turns[0].ids[0]
    tight = pfedme(world, lam=1e8, K=3, lr_p=0.5e-8, eta=0.0)
    near(tight.kept[i], world.first, atol=1e-6)
    loose = pfedme(world, **ME, nu=1e9)
    near(loose.model or {}, world.first)
    assert same(loose.kept[i], world.first)
    exact = pfedme(world, lam=5.0, K=2000, lr_p=0.05, eta=0.0, nu=1e-9)
    rows = world.turns[0].batches[i]["local"][-1]
    g = Mlp.grad(exact.kept[i], world.x[i][rows], world.y[i][rows])
    residue = sum(np.sum((g[n] + 5.0 * (exact.kept[i][n] - world.first[n])) ** 2) for n in g)
    assert 0 < residue <= 1e-18


# FedALA

ALA: dict[str, Any] = {"lr": 0.1, "passes": 3, "num_pre_loss": 2, "threshold": 0.0}


def ala_world(seed: int, rounds: int = 4, passes: int = 3) -> World:
    return with_start(everybody(make_world(seed, rounds=rounds, phases=("local", "ala"))), passes)


@pytest.mark.parametrize("seed", SEEDS)
def test_fedala_with_eta_zero_is_fedavg(seed: int) -> None:
    world = with_start(make_world(seed, rounds=4, phases=("local", "ala")), 3)
    got = fedala(world, **ALA, eta=0.0)
    near(got.model or {}, fedavg(world, lr=0.1).model or {})
    assert all(same(got.kept[i][1], {n: np.ones_like(v) for n, v in top(world.first).items()}) for i in got.kept)


def test_fedala_first_turn_is_fedavg_and_weights_move_later() -> None:
    world = ala_world(0)
    near(fedala(until(world, 1), **ALA).model or {}, fedavg(until(world, 1), lr=0.1).model or {})
    for turns in (2, 3, 4):
        got = fedala(until(world, turns), **ALA)
        weights = np.concatenate([v.ravel() for i in got.kept for v in got.kept[i][1].values()])
        assert weights.min() >= 0.0 and weights.max() <= 1.0 and (weights < 1.0).any()
        assert all(got.kept[i][1].keys() == top(world.first).keys() for i in got.kept)


def test_ala_step_is_the_derivative_in_the_weights() -> None:
    world = make_world(1)
    rng = np.random.default_rng(0)
    received, own = world.first, {n: v + rng.normal(0, 0.5, v.shape) for n, v in world.first.items()}
    weights = {n: rng.uniform(0.3, 0.7, v.shape) for n, v in top(own).items()}
    rows, h = np.arange(4), 1e-6
    x, y = world.x[0][rows], world.y[0][rows]
    new, loss = ala_pass(world, 0, received, own, weights, [rows], 0.1)

    def f(weights: Tree) -> float:
        upper = {n: own[n] + weights[n] * (received[n] - own[n]) for n in weights}
        return Mlp.loss({**body(received), **upper}, x, y)

    assert loss == pytest.approx(f(weights), abs=1e-12)
    for name, w in weights.items():
        for k in range(w.size):
            unit = np.zeros_like(w)
            unit.flat[k] = h
            slope = (f(weights | {name: w + unit}) - f(weights | {name: w - unit})) / (2 * h)
            np.testing.assert_allclose(new[name].flat[k], w.flat[k] - 0.1 * slope, atol=1e-8)
    clipped, _ = ala_pass(world, 0, received, own, weights, [rows] * 3, 1e4)
    values = np.concatenate([v.ravel() for v in clipped.values()])
    assert {0.0, 1.0} == set(values)
    unmoved, _ = ala_pass(world, 0, received, received, weights, [rows], 1.0)
    assert same(unmoved, weights)


def test_ala_rebuilds_the_blend_after_every_batch() -> None:
    world = make_world(1)
    rng = np.random.default_rng(0)
    own = {n: v + rng.normal(0, 0.5, v.shape) for n, v in world.first.items()}
    weights = {n: rng.uniform(0.3, 0.7, v.shape) for n, v in top(own).items()}
    a, b = np.arange(3), np.arange(2, 5)
    half, _ = ala_pass(world, 0, world.first, own, weights, [a], 0.2)
    apart, last = ala_pass(world, 0, world.first, own, half, [b], 0.2)
    together, loss = ala_pass(world, 0, world.first, own, weights, [a, b], 0.2)
    assert same(together, apart) and loss == last
    assert loss == Mlp.loss(blend(world.first, own, half), world.x[0][b], world.y[0][b])


def test_blend_is_exact_at_both_ends() -> None:
    world = make_world(1)
    own = {n: v / 3.0 + 0.1 for n, v in world.first.items()}
    ones = {n: np.ones_like(v) for n, v in top(own).items()}
    assert same(blend(world.first, own, ones), world.first)
    kept = blend(world.first, own, {n: 0 * v for n, v in ones.items()})
    assert same(top(kept), top(own)) and same(body(kept), body(world.first))


def test_start_phase_stops_by_its_rule() -> None:
    world = make_world(0)
    rng = np.random.default_rng(0)
    own = {n: v + rng.normal(0, 0.5, v.shape) for n, v in world.first.items()}
    ones = {n: np.ones_like(v) for n, v in top(own).items()}
    one = [np.arange(0, 3), np.arange(3, 5)]

    def run(passes: int, threshold: float, window: int) -> tuple[Tree, list[float]]:
        return start_phase(
            world,
            0,
            world.first,
            own,
            ones,
            one * passes,
            eta=1.0,
            passes=passes,
            threshold=threshold,
            num_pre_loss=window,
        )

    assert len(run(8, 1e9, 3)[1]) == 4
    assert len(run(8, 0.0, 3)[1]) == 8
    weights, losses = run(40, 0.002, 3)
    want = next(k for k in range(4, 41) if np.asarray(losses[k - 3 : k]).std() < 0.002)
    assert 4 < len(losses) == want < 40
    deviations = [float(np.std(losses[k - 3 : k])) for k in range(4, want + 1)]
    assert len(run(40, 1.1 * deviations[1], 3)[1]) == 5 < len(run(40, 0.99 * deviations[1], 3)[1])
    by_hand = ones
    for k in range(want):
        by_hand, loss = ala_pass(world, 0, world.first, own, by_hand, one, 1.0)
        assert loss == losses[k]
    assert same(weights, by_hand)
    with pytest.raises(ValueError, match="equal passes"):
        start_phase(world, 0, world.first, own, ones, one * 3, eta=1.0, passes=4, threshold=0.0, num_pre_loss=3)


@pytest.mark.parametrize("seed", SEEDS)
def test_fedala_passes_by_turns(seed: int) -> None:
    """No pass in a client's first turn, the start phase in its second, one pass in every later one."""
    world = with_start(make_world(seed, rounds=5, phases=("local", "ala")), 3)
    taken = dict.fromkeys(range(world.population), 0)
    for t, turn in enumerate(world.turns):
        before, after = fedala(until(world, t), **ALA), fedala(until(world, t + 1), **ALA)
        received = before.model or {}
        for i in range(world.population):
            (own, weights), batches = before.kept[i], turn.batches[i]
            if i not in turn.ids:
                assert same(after.kept[i][0], own) and same(after.kept[i][1], weights)
                continue
            for _ in range((0, 3, 1)[min(taken[i], 2)]):
                weights, _ = ala_pass(world, i, received, own, weights, batches["ala"], 1.0)
            start = received if taken[i] == 0 else blend(received, own, weights)
            near(after.extra["blended"][i], start)
            assert same(body(after.extra["blended"][i]), body(received))
            near(after.kept[i][1], weights)
            near(after.kept[i][0], descend(world, i, start, batches["local"], lr=0.1))
            taken[i] += 1
    assert max(taken.values()) > 2


def test_fedala_weighting() -> None:
    world = ala_world(0, rounds=1)
    got = fedala(world, **ALA)
    trained = [got.kept[i][0] for i in world.turns[0].ids]
    near(got.model or {}, mean(trained, world.counts(world.turns[0].ids)))
    near(fedala(world, **ALA, weighting="uniform").model or {}, mean(trained))


# all of them


@pytest.mark.parametrize("method", ["fedper", "fedrep", "ditto", "apfl", "per_fedavg", "pfedme", "fedala"])
def test_a_turn_without_clients_changes_nothing_and_inputs_stay_as_they_were(method: str) -> None:
    phases = ("local", "head", "body", "personal", "inner", "outer", "hessian", "ala")
    world = with_start(equal_steps(make_world(4, phases=phases)), 3)
    calls: dict[str, Any] = {
        "fedper": lambda w: fedper(w, lr=0.1),
        "fedrep": lambda w: fedrep(w, lr=0.1),
        "ditto": lambda w: ditto(w, lr=0.1, lam=0.5),
        "apfl": lambda w: apfl(w, lr=0.1, lr_alpha=0.1),
        "per_fedavg": lambda w: per_fedavg(w, alpha=0.1, beta=0.1, variant="hf"),
        "pfedme": lambda w: pfedme(w, **ME),
        "fedala": lambda w: fedala(w, **ALA),
    }
    copy = {n: v.copy() for n, v in world.first.items()}
    got = calls[method](world).model
    assert same(world.first, copy)
    gap = replace(world, turns=[world.turns[0], Turn([], world.turns[1].batches), *world.turns[1:]])
    assert same(calls[method](gap).model, got)
    backwards = replace(world, turns=[Turn(t.ids[::-1], t.batches) for t in world.turns])
    near(calls[method](backwards).model, got)
