"""FedPCL against its reference, and that classes are told apart by their numbers."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from bridge import answer, close, kept, run
from reference.fedpcl import contrast, nearest, prototypes, through_unit, unit
from reference.fedpcl import fedpcl as ref_fedpcl
from reference.model import BnMlp, Mlp, Model
from reference.world import make_world

from weft.core import everything, role
from weft.core.turn import Execute
from weft.executors import Batched, loop
from weft.local import SGD
from weft.methods.fedpcl import fedpcl

OPT = SGD(0.1, momentum=0.5, weight_decay=0.01)


@pytest.mark.parametrize(
    ("execute", "seed", "net", "train"),
    [
        (loop, 0, Mlp, everything),
        (Batched(), 1, Mlp, everything),
        (Batched(2), 2, BnMlp, everything),
        (Batched(), 3, Mlp, role("head")),
    ],
    ids=["loop", "batched", "chunked-norm", "frozen"],
)
def test_equals_the_reference(execute: Execute, seed: int, net: Model, train: object) -> None:
    """Models, everybody's prototypes, and the answers of a client that never had a turn, too."""
    world = make_world(seed, rounds=4, model=net)
    world = replace(world, turns=[replace(t, ids=[i for i in t.ids if i != 1]) for t in world.turns])
    fed = run(world, fedpcl(OPT, tau=0.5, train=train), execute)

    def learns(name: str) -> bool:
        return train is everything or name.startswith("head")

    out = ref_fedpcl(world, lr=0.1, tau=0.5, trained=learns, momentum=0.5, weight_decay=0.01)
    own = kept(fed)
    for i, model in out.kept.items():
        close(own[i], model)
        said = prototypes(net.logits(model, world.x[i]), world.y[i], 4)
        assert (answer(fed, world, i).argmax(1) == nearest(world, model, said, world.x[i])).all()
        if i in out.extra["sets"]:
            mean, owned = (x[i] for x in fed.server.protos.values())
            close({"mean": mean, "owned": owned}, dict(zip(("mean", "owned"), out.extra["sets"][i], strict=True)))
    assert 1 not in out.extra["sets"] and not fed.server.protos["owned"][1].any()


def test_a_class_that_nobody_has_is_left_out() -> None:
    """Of the softmax; the others are told apart as before."""
    world = make_world(0, rounds=4)
    world = replace(world, y=[np.where(y == 3, 0, y) for y in world.y])
    fed, out = (
        run(world, fedpcl(OPT, tau=0.5), loop),
        ref_fedpcl(world, lr=0.1, tau=0.5, momentum=0.5, weight_decay=0.01),
    )
    own = kept(fed)
    for i, model in out.kept.items():
        close(own[i], model)


def test_the_first_round_trains_nothing() -> None:
    world = make_world(0, rounds=1)
    assert all(
        torch.equal(own[k], torch.tensor(world.first[k]))
        for own in kept(run(world, fedpcl(OPT), loop)).values()
        for k in own
    )


def test_other_names_of_classes_change_nothing_else() -> None:
    """Public code stacks prototypes in the order in which labels were met."""
    world, order = make_world(0, rounds=3), np.array([2, 0, 3, 1])
    other = replace(world, y=[order[y] for y in world.y])
    a, b = (kept(run(w, fedpcl(OPT, tau=0.5), loop)) for w in (world, other))
    for i in a:
        close(a[i], {k: v.numpy() for k, v in b[i].items()})


def test_the_reference_by_differences() -> None:
    rng = np.random.default_rng(0)
    f, y, table = rng.normal(size=(4, 3)), np.array([0, 1, 2, 4]), rng.normal(size=(5, 3))
    known = np.array([True, True, True, False, False])

    def value(f: np.ndarray) -> float:
        return float(contrast(unit(f), y, table, known, 0.3)[0].sum())

    df, e = through_unit(f, contrast(unit(f), y, table, known, 0.3)[1]), 1e-6
    for place in np.ndindex(*f.shape):
        step = np.zeros_like(f)
        step[place] = e
        assert abs((value(f + step) - value(f - step)) / (2 * e) - df[place]) < 1e-7
    assert not df[3].any()
