"""One client's turn taken apart before the run: what crosses the wire, and what a step costs."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_map
from torch.utils.flop_counter import FlopCounterMode

from weft.core.here import Here
from weft.core.method import Method, Round
from weft.core.net import Net
from weft.core.round import Federation
from weft.core.task import Data, Examples, Reply, Task
from weft.core.tree import Tree
from weft.core.turn import Mine, take_turn
from weft.wire import weigh


class Probe(NamedTuple):
    """What one client's first turn shows."""

    wire: list[dict[str, Any]]  # direction, channel, tensors, bytes: one row for each channel and direction
    flops_per_step: float
    parameters: int  # that the network learns


def probe(federation: Federation, here: Here, client: int) -> Probe:
    """Run one client's first turn alone, and throw its answer away."""
    ids = torch.tensor([client])
    net = next(group.net for group in here.groups if client in group.ids)
    mine = tree_map(lambda x: x[0], here.states(ids))
    wire: list[dict[str, Any]] = []
    flops, steps = 0, 0
    if federation.method.opening is not None:  # for what it refuses: its bytes and steps are those of no round
        _turn(federation.method.opening, federation, here, net, mine, ids)
    turn: Method | None = federation.method
    while turn is not None:
        with FlopCounterMode(display=False) as counter:
            down, reply, made = _turn(turn, federation, here, net, mine, ids)
        flops += counter.get_total_flops()
        steps += made
        wire += [_row("down", name, tree, weigh(tree)) for name, tree in down._asdict().items()]
        wire += [
            _row("up", name, tree, _up(turn, net.buffers, name, tree)) for name, tree in reply.up._asdict().items()
        ]
        turn = turn.next
    learnt = net.learnable(net.init(0)).values()
    return Probe(wire, flops / steps if steps else 0.0, sum(x.numel() for x in learnt))


def _turn(
    turn: Method, federation: Federation, here: Here, net: Net, mine: Mine, ids: Tensor
) -> tuple[Any, Reply[Any, Mine], int]:
    """(what the client receives, what it answers after one step of each phase, how many steps these were)."""
    down = turn.send(federation.server, Round(1, ids, len(federation.turns), federation.net))
    if turn.private_send:
        down = tree_map(lambda x: x[0], down)
    drawn = tree_map(lambda x: x[0], here.draw(1, ids, turn.phases, federation.turns[ids]))
    drawn = drawn._replace(steps={k: s[:1] for k, s in drawn.steps.items()})
    reply = take_turn(turn, net, Task(down, _on(mine, here.examples), Data(here.examples, drawn)))
    return down, reply, sum(int((s >= 0).any(1).sum()) for s in drawn.steps.values())


def _on(mine: Mine, examples: Examples) -> Mine:
    return tree_map(lambda x: x.to(examples.y.device), mine)  # type: ignore[no-any-return]


def _up(method: Method, buffers: frozenset[str], name: str, tree: Tree) -> int:
    codec = method.up[name].encode
    if codec is None:
        return weigh(tree)
    coded = {k: v for k, v in tree.items() if k not in buffers}
    carried = {k: v for k, v in tree.items() if k in buffers}
    return weigh(coded, codec) + (weigh(carried) if carried else 0)


def _row(direction: str, channel: str, tree: Tree, size: int) -> dict[str, Any]:
    return {"direction": direction, "channel": channel, "tensors": len(tree), "bytes": size}
