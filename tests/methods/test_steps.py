"""Every method against its numpy reference: several turns of a ragged federation, under every local executor."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from bridge import close, kept, run
from reference.fedadagrad import fedadagrad as ref_fedadagrad
from reference.fedadam import fedadam as ref_fedadam
from reference.fedavg import fedavg as ref_fedavg
from reference.fedavgm import fedavgm as ref_fedavgm
from reference.feddyn import feddyn as ref_feddyn
from reference.fednova import fednova as ref_fednova
from reference.fedproto import fedproto as ref_fedproto
from reference.fedprox import fedprox as ref_fedprox
from reference.fedyogi import fedyogi as ref_fedyogi
from reference.model import BnMlp, Mlp, Model
from reference.moon import moon as ref_moon
from reference.scaffold import scaffold as ref_scaffold
from reference.world import Outcome, World, make_world

from weft.core import Method
from weft.core.round import Federation
from weft.core.turn import Execute
from weft.executors import Batched, loop
from weft.local import SGD
from weft.methods.fedavg import fedavg
from weft.methods.feddyn import feddyn
from weft.methods.fednova import fednova
from weft.methods.fedopt import fedadagrad, fedadam, fedavgm, fedyogi
from weft.methods.fedproto import fedproto
from weft.methods.fedprox import fedprox
from weft.methods.moon import moon
from weft.methods.scaffold import scaffold

LR = 0.3
HEAVY: dict[str, Any] = {"momentum": 0.5, "weight_decay": 0.01}
Pairs = Iterator[tuple[Any, Any]]


def model(fed: Federation, out: Outcome) -> Pairs:
    """The server's model."""
    yield fed.server.model, out.model


def models_kept(fed: Federation, out: Outcome) -> Pairs:
    """The server's model, if there is one, and what the reference says the clients keep."""
    if out.model is not None:
        yield fed.server.model, out.model
    mine = kept(fed)
    yield from ((mine[i], tree) for i, tree in out.kept.items())


def moments(fed: Federation, out: Outcome) -> Pairs:
    """The server's model and both moments of its optimiser."""
    yield fed.server.model, out.model
    yield fed.then["model"]["m"], out.extra["m"]
    yield fed.then["model"]["v"], out.extra["v"]


def momentum(fed: Federation, out: Outcome) -> Pairs:
    """The server's model and momentum."""
    yield fed.server.model, out.model
    yield fed.then["model"], out.extra["u"]


def controls(fed: Federation, out: Outcome) -> Pairs:
    """Model, server control and the clients' controls."""
    yield fed.server.control, out.extra["c"]
    yield from models_kept(fed, out)


def dynamic(fed: Federation, out: Outcome) -> Pairs:
    """Model, h and the clients' g_k."""
    yield fed.server.h, out.extra["h"]
    yield from models_kept(fed, out)


def prototypes(fed: Federation, out: Outcome) -> Pairs:
    """The table of prototypes and the clients' models."""
    table = fed.server.protos
    yield (
        {"mean": table["mean"], "known": table["known"] > 0},
        {"mean": out.extra["prototypes"], "known": out.extra["known"]},
    )
    yield from models_kept(fed, out)


@dataclass(frozen=True)
class Case:
    """A method, its reference with the same settings, and what to compare."""

    ours: Method
    theirs: Callable[[World], Outcome]
    look: Callable[[Federation, Outcome], Pairs] = model
    norm: bool = True  # False: the two carry running statistics differently


CASES = {
    "fedavg": Case(fedavg(lr=LR), lambda w: ref_fedavg(w, lr=LR)),
    "fedavg heavy": Case(
        fedavg(SGD(LR, nesterov=True, **HEAVY)), lambda w: ref_fedavg(w, lr=LR, nesterov=True, **HEAVY)
    ),
    "fedprox": Case(fedprox(SGD(LR, **HEAVY), mu=0.5), lambda w: ref_fedprox(w, lr=LR, mu=0.5, **HEAVY)),
    "scaffold I": Case(
        scaffold(lr=LR, option="I", eta_g=0.7),
        lambda w: ref_scaffold(w, lr=LR, option="I", eta_g=0.7),
        controls,
        norm=False,
    ),
    "scaffold II": Case(scaffold(lr=LR, eta_g=0.7), lambda w: ref_scaffold(w, lr=LR, eta_g=0.7), controls, norm=False),
    "fedavgm": Case(fedavgm(lr=LR, eta=0.7, beta=0.8), lambda w: ref_fedavgm(w, lr=LR, eta=0.7, beta=0.8), momentum),
    "fedadam": Case(fedadam(lr=LR, eta=0.2, tau=0.01), lambda w: ref_fedadam(w, lr=LR, eta=0.2, tau=0.01), moments),
    "fedyogi": Case(fedyogi(lr=LR, eta=0.2, tau=0.01), lambda w: ref_fedyogi(w, lr=LR, eta=0.2, tau=0.01), moments),
    "fedadagrad": Case(
        fedadagrad(lr=LR, eta=0.2, beta1=0.3), lambda w: ref_fedadagrad(w, lr=LR, eta=0.2, beta1=0.3), moments
    ),
    "feddyn": Case(feddyn(SGD(0.1), alpha=0.5), lambda w: ref_feddyn(w, lr=0.1, alpha=0.5), dynamic, norm=False),
    "fednova": Case(fednova(lr=LR), lambda w: ref_fednova(w, lr=LR)),
    "fednova momentum": Case(fednova(SGD(LR, momentum=0.9)), lambda w: ref_fednova(w, lr=LR, rho=0.9)),
    "fednova proximal": Case(fednova(lr=LR, mu=0.4), lambda w: ref_fednova(w, lr=LR, mu=0.4)),
    "fednova both": Case(fednova(SGD(LR, momentum=0.5), mu=0.4), lambda w: ref_fednova(w, lr=LR, rho=0.5, mu=0.4)),
    "moon": Case(moon(SGD(LR, **HEAVY), mu=2.0), lambda w: ref_moon(w, lr=LR, mu=2.0, **HEAVY), models_kept),
    "moon cold": Case(moon(SGD(LR), mu=1.0, T=0.05), lambda w: ref_moon(w, lr=LR, mu=1.0, T=0.05), models_kept),
    "moon frozen": Case(moon(SGD(1e-3), mu=1.0, T=1e-3), lambda w: ref_moon(w, lr=1e-3, mu=1.0, T=1e-3), models_kept),
    "fedproto": Case(
        fedproto(SGD(LR, **HEAVY), lam=2.0), lambda w: ref_fedproto(w, lr=LR, lam=2.0, **HEAVY), prototypes
    ),
    "fedproto uniform": Case(
        fedproto(SGD(LR), lam=2.0, weighting="uniform"),
        lambda w: ref_fedproto(w, lr=LR, lam=2.0, weighting="uniform"),
        prototypes,
    ),
}
EXECUTORS: dict[str, Execute] = {"loop": loop, "batched": Batched(), "chunked": Batched(2)}
RUNS = [
    pytest.param(name, executor, seed, net, id=f"{name}-{executor}-{'norm' if net is BnMlp else 'plain'}")
    for name, case in CASES.items()
    for executor, seed, net in (("loop", 0, Mlp), ("batched", 1, Mlp), ("loop", 2, BnMlp), ("chunked", 2, BnMlp))
    if case.norm or net is Mlp
]


@pytest.mark.parametrize(("name", "executor", "seed", "net"), RUNS)
def test_equals_the_reference(name: str, executor: str, seed: int, net: Model) -> None:
    torch.set_num_threads(1)
    case, world = CASES[name], make_world(seed, rounds=3, model=net)
    fed, out = run(world, case.ours, EXECUTORS[executor]), case.theirs(world)
    for ours, theirs in case.look(fed, out):
        close(ours, theirs)


def test_fedproto_keeps_the_prototype_of_a_class_that_nobody_brings() -> None:
    case, world = CASES["fedproto"], make_world(3, rounds=4)
    turns = [replace(turn, ids=ids) for turn, ids in zip(world.turns, ([0], [2], [0, 3], [1]), strict=True)]
    brought = [{int(c) for i in turn.ids for c in world.y[i]} for turn in turns]
    assert not brought[0] <= brought[1]
    for rounds in range(1, 5):
        world = replace(world, turns=turns[:rounds])
        fed, out = run(world, case.ours, loop), case.theirs(world)
        for ours, theirs in case.look(fed, out):
            close(ours, theirs)


def test_fednova_with_equal_steps_and_server_momentum_is_fedavgm() -> None:
    world = make_world(4, rounds=4)
    turns = [replace(t, batches={i: {"local": b["local"][:2]} for i, b in t.batches.items()}) for t in world.turns]
    world = replace(world, turns=turns)
    fed = run(world, fednova(SGD(LR, momentum=0.0), gmf=0.8), loop)
    close(fed.server.model, ref_fedavgm(world, lr=LR, beta=0.8).model or {})


def test_fednova_leaves_out_a_client_without_a_step() -> None:
    world = make_world(4, rounds=2)
    idle = [t.ids[0] for t in world.turns]
    turns = [replace(t, batches={**t.batches, i: {"local": []}}) for t, i in zip(world.turns, idle, strict=True)]
    absent = [replace(t, ids=[k for k in t.ids if k != i]) for t, i in zip(turns, idle, strict=True)]
    with_it, without = (run(replace(world, turns=t), fednova(lr=LR), loop) for t in (turns, absent))
    close(with_it.server.model, {k: v.numpy() for k, v in without.server.model.items()})
