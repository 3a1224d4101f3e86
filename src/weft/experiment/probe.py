"""One client's turn taken apart before the run: what crosses the wire, and what a step costs."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_map
from torch.utils.flop_counter import FlopCounterMode

from weft.core.method import Method, Round
from weft.core.net import Net
from weft.core.round import Draw, Federation, Mine, take_turn
from weft.core.task import Data, Examples, Reply, Task
from weft.core.tree import Tree
from weft.wire import weigh


class Probe(NamedTuple):
    """What one client's first turn shows."""

    wire: list[dict[str, Any]]  # direction, channel, tensors, bytes: one row for each channel and direction
    flops_per_step: float


def probe(federation: Federation, examples: Examples, draw: Draw, client: int) -> Probe:
    """Run one client's first turn alone, and throw its answer away."""
    ids = torch.tensor([client])
    k = next(i for i, g in enumerate(federation.groups) if bool(torch.isin(ids, g.ids)))
    group = federation.groups[k]
    mine = tree_map(lambda x: x[0], federation.kept[k].gather(torch.searchsorted(group.ids, ids)))
    wire: list[dict[str, Any]] = []
    flops, steps = 0, 0
    if federation.method.opening is not None:  # for what it refuses: its bytes and steps are those of no round
        _turn(federation.method.opening, federation, group.net, mine, examples, draw, ids)
    turn: Method | None = federation.method
    while turn is not None:
        with FlopCounterMode(display=False) as counter:
            down, reply, made = _turn(turn, federation, group.net, mine, examples, draw, ids)
        flops += counter.get_total_flops()
        steps += made
        wire += [_row("down", name, tree, weigh(tree)) for name, tree in down._asdict().items()]
        wire += [
            _row("up", name, tree, _up(turn, group.net.buffers, name, tree))
            for name, tree in reply.up._asdict().items()
        ]
        turn = turn.next
    return Probe(wire, flops / steps if steps else 0.0)


def _turn(
    turn: Method, federation: Federation, net: Net, mine: Mine, examples: Examples, draw: Draw, ids: Tensor
) -> tuple[Any, Reply[Any, Mine], int]:
    """(what the client receives, what it answers after one step of each phase, how many steps these were)."""
    down = turn.send(federation.server, Round(1, ids, len(federation.turns), federation.net))
    if turn.private_send:
        down = tree_map(lambda x: x[0], down)
    drawn = tree_map(lambda x: x[0], draw(ids, turn.phases, federation.turns[ids]))
    drawn = drawn._replace(steps={k: s[:1] for k, s in drawn.steps.items()})
    reply = take_turn(turn, net, Task(down, _on(mine, examples), Data(examples, drawn)))
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
