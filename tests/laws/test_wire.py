"""What is kept at home is on no channel, and bytes counted are bytes packed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils._pytree import tree_leaves, tree_map

from tests.laws.toys import CLIENTS, EXAMPLES, but, cohort, draw, groups, make, start, subjects, trained
from weft.core.method import Round
from weft.core.round import play
from weft.core.task import Data, Task
from weft.core.turn import take_turn
from weft.wire import pack, weigh


@pytest.mark.parametrize("name", subjects("bytes"))
def test_bytes_counted_are_bytes_packed(name: str) -> None:
    method = make(name)
    federation = trained(name, 1)
    played = play(but(federation, weigh=weigh), 2, cohort(2))
    down, up = 0, 0
    turn: Any = method
    while turn:
        for ids in cohort(2)[:, None]:
            sent, reply = turn_of(turn, federation, ids, 2)
            down += sum(len(pack(tree)) for tree in sent)
            up += sum(packed(turn, federation.net, name, tree) for name, tree in reply.up._asdict().items())
        turn = turn.next
    assert (played.traffic.down, played.traffic.up) == (down, up)


def packed(method: Any, net: Any, channel: str, tree: Any) -> int:
    """Bytes of what one client sends on a channel; running statistics pass by its codec."""
    codec = method.up[channel].encode
    if codec is None:
        return len(pack(tree))
    carried = {k: v for k, v in tree.items() if k in net.buffers}
    coded = {k: v for k, v in tree.items() if k not in carried}
    return len(codec.pack(coded)) + (len(pack(carried)) if carried else 0)


def turn_of(method: Any, federation: Any, ids: torch.Tensor, number: int) -> tuple[Any, Any]:
    """(what one client receives, what it answers)."""
    group = next(g for g in federation.groups if int(ids) in g.ids)
    down = method.send(federation.server, Round(number, ids, CLIENTS, federation.net))
    if method.private_send:
        down = tree_map(lambda x: x[0], down)
    mine = tree_map(lambda x: x[0], federation.clients.states(ids))
    turn = tree_map(lambda x: x[0], draw(number, ids, method.phases, federation.turns[ids]))
    return down, take_turn(method, group.net, Task(down, mine, Data(EXAMPLES, turn)))


@pytest.mark.parametrize("name", subjects("home"))
def test_examples_and_kept_state_are_on_no_channel(name: str) -> None:
    """No tensor that is sent equals one that is kept, bit for bit."""
    federation = trained(name, 2)
    for ids in cohort(2)[:, None]:  # who have kept something
        _, reply = turn_of(federation.method, federation, ids, 3)
        sent = [x for tree in reply.up for x in tree.values() if x.numel() > 1 and x.any()]
        for kept in tree_leaves(reply.mine.method):
            for x in sent:
                assert x.shape != kept.shape or not torch.equal(x, kept)


@pytest.mark.parametrize("name", subjects("statistics"))
def test_running_statistics_travel_with_models_only(name: str) -> None:
    """No control variate, momentum or count belongs to a running statistic."""
    federation = trained(name, 1)
    _, reply = turn_of(federation.method, federation, cohort(2)[:1], 2)
    others = [tree for channel, tree in reply.up._asdict().items() if channel != "model"]
    assert not [k for tree in others for k in tree if k in federation.net.buffers]


SPLITS = {"fedper": ("head",), "fedrep": ("head",), "fedbn": ("norm",), "lg-fedavg": ("body", "norm")}


@pytest.mark.parametrize("name", SPLITS)
def test_personal_entries_never_travel(name: str) -> None:
    federation = start(make(name))
    down, reply = turn_of(federation.method, federation, torch.tensor([0]), 1)
    for message in (down, reply.up):
        for tree in message:
            assert tree and not [k for k in tree if k.startswith(SPLITS[name])]


def test_one_architecture_or_two() -> None:
    assert len(groups("fedproto")) == 2 and len(groups("fedavg")) == 1
