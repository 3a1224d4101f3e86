"""Between the references' worlds and the engine: the same examples, batches, participants and first model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from reference.model import BnMlp, ReluMlp
from reference.world import World
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from weft.core import Data, Examples, Input, Method, Net, Phase, Round, Task, Tree, Turn
from weft.core.clients import Group
from weft.core.here import Here
from weft.core.method import shown
from weft.core.round import Federation, begin, play
from weft.core.turn import Execute
from weft.evaluation.answers import answer as asked


class Toy(nn.Module):
    """Linear body, batch norm if wanted, tanh or ReLU, linear head."""

    def __init__(self, dim: int, hidden: int, classes: int, norm: bool, relu: bool = False) -> None:
        super().__init__()
        self.body = nn.Linear(dim, hidden)
        self.norm = nn.BatchNorm1d(hidden) if norm else nn.Identity()
        self.act = nn.ReLU() if relu else nn.Tanh()
        self.head = nn.Linear(hidden, classes)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.act(self.norm(self.body(x))))
        return out


def net_of(world: World) -> Net:
    """The network whose numpy twin is `world.model`."""
    classes, hidden = world.first["head.weight"].shape
    dim = world.first["body.weight"].shape[1]
    norm, relu = world.model is BnMlp, world.model is ReluMlp
    net = Net.from_module(lambda: Toy(dim, hidden, classes, norm, relu), "head", dtype=torch.float64)
    return replace(net, input=Input((dim,)))


def _stack(parts: list[list[np.ndarray[Any, Any]]]) -> Tensor:
    """Row numbers [clients, steps, batch], -1 = padding."""
    wide = max((len(rows) for part in parts for rows in part), default=1)
    out = torch.full((len(parts), max(map(len, parts)), wide), -1)
    for i, part in enumerate(parts):
        for t, rows in enumerate(part):
            out[i, t, : len(rows)] = torch.as_tensor(rows)
    return out


def examples_of(world: World) -> Examples:
    """Everybody's examples, in order of client id."""
    x, y = torch.tensor(np.concatenate(world.x)), torch.tensor(np.concatenate(world.y))
    return Examples(x, y, dtype=torch.float64)


def turn_of(
    world: World, batches: Mapping[int, Mapping[str, Any]], ids: Tensor, phases: Mapping[str, Phase], past: Tensor
) -> Turn:
    """The turns of the clients `ids` with these batches; a phase is empty where a client's turn does not have it."""
    own, offset = ids.tolist(), np.cumsum([0, *map(len, world.y)])

    def rows_of(name: str, phase: Phase, i: int, had: int) -> list[np.ndarray[Any, Any]]:
        present = had >= phase.first and (phase.last is None or had <= phase.last)
        return [offset[i] + b for b in batches[i].get(name, [])] if present else []

    steps = {
        name: _stack([rows_of(name, phase, i, had) for i, had in zip(own, past.tolist(), strict=True)])
        for name, phase in phases.items()
    }
    rows = _stack([[np.arange(offset[i], offset[i + 1])] for i in own])[:, 0]
    size = torch.tensor(world.counts(own), dtype=torch.float64)
    return Turn(rows, size, steps, ids, torch.ones_like(size), past)


def run(world: World, method: Method, execute: Execute) -> Federation:
    """The federation after all the turns of the world."""
    net, examples = net_of(world), examples_of(world)
    first = {k: torch.tensor(world.first[k]) for k in net.init(0)}

    def draw(number: int, ids: Tensor, phases: Mapping[str, Phase], past: Tensor) -> Turn:
        return turn_of(world, world.turns[number - 1].batches, ids, phases, past)._replace(key=ids + 1000 * number)

    clients = Here.begin(method, [Group(net, torch.arange(world.population))], examples, draw, execute, first=first)
    fed = begin(method, clients, world.population, first=first)
    for number, turn in enumerate(world.turns, 1):
        if turn.ids:
            fed = play(fed, number, torch.tensor(turn.ids)).federation
    return fed


def recorded(execute: Execute) -> tuple[Execute, dict[tuple[int, int], Any]]:
    """The same executor, and what clients send in a run with it, by (round, client)."""
    log: dict[tuple[int, int], Any] = {}

    def heard(method: Method, net: Net, down: Any, mine: Any, examples: Examples, turn: Turn, public: Any) -> Any:
        reply = execute(method, net, down, mine, examples, turn, public)
        for k, key in enumerate(turn.key.tolist() if method.up else []):
            log[divmod(key, 1000)] = tree_map(lambda x, k=k: x[k], reply.up)
        return reply

    return heard, log


def answer(fed: Federation, world: World, client: int, view: str = "personal", **batches: Any) -> Any:
    """The logits with which a client answers to its own examples; `batches` are those of the phases of a view."""
    ids = torch.tensor([client])
    phases = dict.fromkeys(fed.method.phases, Phase())
    turn = tree_map(lambda x: x[0], turn_of(world, {client: batches}, ids, phases, fed.turns[ids]))
    down, stacked = shown(fed.method, fed.server, Round(len(world.turns) + 1, ids, world.population, fed.net))
    down = tree_map(lambda x: x[0], down) if stacked else down
    task = Task(down, kept(fed)[client], Data(examples_of(world), turn))
    return fed.method.views[view].of(int(fed.turns[ids]))(fed.net, task)(torch.tensor(world.x[client])).detach().numpy()


def draws(world: World) -> list[np.ndarray[Any, Any]]:
    """Some of everybody's examples for each client, not as many for all."""
    rng, n = np.random.default_rng(0), sum(map(len, world.y))
    return [rng.permutation(n)[: 5 + 2 * i] for i in range(world.population)]


def judged(
    fed: Federation, world: World, rows: Sequence[np.ndarray[Any, Any]], view: str = "personal"
) -> list[np.ndarray[Any, Any]]:
    """Per client its shares of all classes [n, classes], as a run judges them, on rows of everybody's examples."""
    ids = torch.arange(world.population)

    def look(ids: Tensor) -> tuple[Any, bool]:
        return shown(fed.method, fed.server, Round(len(world.turns), ids, world.population, fed.net))

    assert isinstance(fed.clients, Here)
    said = asked(
        fed.clients,
        fed.method.views[view],
        look,
        rows,
        ids.numpy(),
        fed.turns,
        len(world.turns),
        scores=True,
        together=3,
    )
    assert said.scores is not None
    return [said.scores[said.client == i] for i in ids.tolist()]


def kept(fed: Federation) -> dict[int, Any]:
    """What each client keeps, by its id."""
    ids = torch.arange(len(fed.turns))
    stacked = fed.clients.states(ids).method
    return {i: tree_map(lambda x, i=i: x[i], stacked) for i in ids.tolist()}


def close(ours: Tree, theirs: Mapping[str, Any], atol: float = 1e-9) -> None:
    """Every entry of `theirs` is in `ours`, and equal."""
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        np.testing.assert_allclose(ours[name].numpy(), value, rtol=0, atol=atol, err_msg=name)
