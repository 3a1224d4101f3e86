"""A small federation on which every method is held to the laws.

Six clients with unequal data and unequal numbers of steps; four of them take part in a round, so that of those of the
second some have had a turn and some have not. The network has batch norm and dropout, and all is judged in float64: in
float32 one flipped ReLU grows to 1e-3 within a few rounds.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from weft.core import Input, Method, Net
from weft.core.clients import Group
from weft.core.here import Here
from weft.core.laws import LAWS
from weft.core.method import Phase
from weft.core.registry import REGISTRY
from weft.core.round import Federation, begin, play
from weft.core.task import Examples, Turn
from weft.core.turn import Draw, Execute
from weft.executors import Batched
from weft.experiment.plugins import load_methods
from weft.local.batches import draw_turns

torch.set_num_threads(1)
load_methods()
CLIENTS, INPUTS, CLASSES = 6, 5, 3
METHODS = sorted(REGISTRY)
OPTIONS: dict[str, dict[str, Any]] = {
    "cfl": {"eps1": 1e9, "eps2": 0.0, "after": 1},
    "fedala": {"max_passes": 12},
    "fedrep": {"head_epochs": 2},
    "pfa": {"warm": 1, "eps": 0.4},
    "distfl": {"warm": 1, "probes": 3, "refine": 3, "gap_min": 0.0},
}


class Small(nn.Module):
    """Linear, batch norm, tanh, dropout, head."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.norm = nn.Linear(INPUTS, 6, bias=False), nn.BatchNorm1d(6)  # a bias before a norm never learns
        self.drop, self.head = nn.Dropout(0.2), nn.Linear(6, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.drop(torch.tanh(self.norm(self.body(x)))))


class Deeper(nn.Module):
    """Another architecture with the same feature width."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(INPUTS, 7), nn.Linear(7, 6), nn.Linear(6, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.second(torch.relu(self.first(x)))))


SMALL = replace(Net.from_module(Small, dtype=torch.float64), input=Input((INPUTS,)))
DEEPER = replace(Net.from_module(Deeper, dtype=torch.float64), input=Input((INPUTS,)))


def make(name: str, **options: Any) -> Method:
    """A method of the registry with settings that suit the toy."""
    return REGISTRY[name].make(**{**OPTIONS.get(name, {}), **options})


def subjects(law: str) -> list[Any]:
    """Whom to hold to a law: the methods to which it applies, and those that are exempted, which must break it."""
    assert law in LAWS
    found: list[Any] = [n for n in METHODS if law not in REGISTRY[n].apart]
    for name in METHODS:
        if law in REGISTRY[name].exempt:
            marks = pytest.mark.xfail(reason=REGISTRY[name].exempt[law], raises=AssertionError, strict=True)
            found.append(pytest.param(name, marks=marks))
    return found


def groups(name: str, net: Net = SMALL) -> list[Group]:
    """One architecture for all, or two where the method allows it."""
    if net is SMALL and REGISTRY[name].mixed:
        return [Group(SMALL, torch.arange(0, CLIENTS, 2)), Group(DEEPER, torch.arange(1, CLIENTS, 2))]
    return [Group(net, torch.arange(CLIENTS))]


def examples(seed: int = 0) -> tuple[Examples, list[np.ndarray]]:
    """(everybody's examples, the row numbers of each client)."""
    rng = np.random.default_rng(seed)
    sizes = [5, 12, 3, 9, 14, 6]
    y = rng.integers(0, CLASSES, sum(sizes))
    x = rng.normal(size=(sum(sizes), INPUTS)) + rng.normal(size=(CLASSES, INPUTS))[y]
    rows = np.split(rng.permutation(sum(sizes)), np.cumsum(sizes)[:-1])
    return Examples(torch.from_numpy(x), torch.from_numpy(y), dtype=torch.float64), rows


EXAMPLES, ROWS = examples()


def cohort(number: int, size: int = 4) -> Tensor:
    """The clients of a round."""
    return torch.from_numpy(np.sort(np.random.default_rng(number).choice(CLIENTS, size, replace=False)))


def draw(
    number: int,
    ids: Tensor,
    phases: Mapping[str, Phase],
    past: Tensor,
    rows: Sequence[np.ndarray] = tuple(ROWS),
    rate: float = 1.0,
    batch_size: int = 4,
    epochs: int = 1,
) -> Turn:
    """The turns of some clients."""
    return draw_turns(
        [rows[k] for k in ids.tolist()],
        ids.tolist(),
        phases,
        past.tolist(),
        seed=3,
        number=number,
        epochs=epochs,
        batch_size=batch_size,
        rate=rate,
        dtype=torch.float64,
    )


def start(method: Method, nets: list[Group] | None = None, **parts: Any) -> Federation:
    """The federation before its first round."""
    here = Here.begin(method, nets or groups(method.name), EXAMPLES, draw, Batched(), seed=1, **parts)
    return begin(method, here, CLIENTS, seed=1)


def but(federation: Federation, **parts: Any) -> Federation:
    """The federation with other parts of its clients: their draw, their examples, their executor."""
    return replace(federation, clients=replace(federation.clients, **parts))  # type: ignore[type-var]


def train(
    method: Method,
    execute: Execute | None = None,
    rounds: int = 3,
    *,
    nets: list[Group] | None = None,
    federation: Federation | None = None,
    first: int = 1,
    size: int = 4,
    drawn: Draw = draw,
    data: Examples = EXAMPLES,
) -> Federation:
    """Play rounds `first` to `rounds`."""
    federation = but(federation or start(method, nets), draw=drawn, examples=data, execute=execute or Batched())
    for number in range(first, rounds + 1):
        federation = play(federation, number, cohort(number, size)).federation
    return federation


def trained(name: str, rounds: int = 3) -> Federation:
    """`train(make(name), rounds=rounds)`, with state of the caller's own.

    Several laws ask for the same rounds, which are played once.
    """
    own, known = start(make(name)), played(name, rounds)
    for mine, theirs in zip(own.clients.kept, known.clients.kept, strict=True):  # type: ignore[attr-defined]
        if len(seen := theirs.seen()):
            mine.scatter(seen, theirs.gather(seen))
    server, then, turns = copy.deepcopy((known.server, dict(known.then), known.turns))
    return replace(own, server=server, then=then, turns=turns)


@functools.cache
def played(name: str, rounds: int) -> Federation:
    """What `trained` gives copies of."""
    if rounds == 0:
        return start(make(name))
    return train(make(name), rounds=rounds, federation=trained(name, rounds - 1), first=rounds)


def replayed(
    name: str, execute: Execute | None = None, drawn: Draw = draw, through: Callable[[Method], Method] | None = None
) -> Federation:
    """`trained(name)`, but with its last round played in another way: all of them if the method opens the first.

    Of the four clients of that round one had no turn yet, one had one, and two had two.
    """
    method = through(make(name)) if through else make(name)
    before = 0 if method.opening else 2
    federation = but(replace(trained(name, before), method=method), method=method)
    return train(method, execute, federation=federation, first=before + 1, drawn=drawn)


def leaves(federation: Federation) -> list[Tensor]:
    """All tensors of the state of a federation: the server's, the transforms', and what every client keeps."""
    return tree_leaves((federation.server, dict(federation.then), kept(federation), federation.turns))


def kept(federation: Federation) -> list[Any]:
    """What all clients keep, by group."""
    return [federation.clients.states(group.ids) for group in federation.groups]  # type: ignore[attr-defined]


def differ(a: Federation, b: Federation) -> bool:
    """Whether two federations have other numbers, or as many of them as clusters are."""
    return [x.shape for x in leaves(a)] != [x.shape for x in leaves(b)] or gap(a, b) > 1e-6


def gap(a: Any, b: Any) -> float:
    """Largest difference between two states of the same structure."""
    left = leaves(a) if isinstance(a, Federation) else tree_leaves(a)
    right = leaves(b) if isinstance(b, Federation) else tree_leaves(b)
    assert [x.shape for x in left] == [x.shape for x in right]
    return max(
        (float((x.double() - y.double()).abs().max()) for x, y in zip(left, right, strict=True) if x.numel()),
        default=0.0,
    )
