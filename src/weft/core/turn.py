"""One client's turn as it is run: the method's work, then the codecs of what is sent."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from torch import Tensor

from weft.core.method import Method, Phase
from weft.core.net import Net
from weft.core.stream import code, fold
from weft.core.task import Examples, Reply, Task, Turn
from weft.core.tree import Tree


class Mine(NamedTuple):
    """All that a client keeps: the method's state and the memories of the codecs of its channels."""

    method: Any
    codecs: dict[str, Any]


Execute = Callable[[Method, Net, Any, Any, Examples, Turn, Any], Reply[Any, Any]]
"""(method, net, down, mine, examples, turn, public) -> Reply, stacked over the clients of `turn`; `down` is stacked if
the method's `private_send` says so."""

Draw = Callable[[int, Tensor, Mapping[str, Phase], Tensor], Turn]
"""(round, client ids, phases, number of earlier turns of each) -> their turns, stacked."""


def encoded(net: Net, tree: Tree) -> tuple[Tree, Tree]:
    """(what codecs and server optimisers act on, running statistics that pass them by)."""
    carried = net.buffers
    return {k: v for k, v in tree.items() if k not in carried}, {k: v for k, v in tree.items() if k in carried}


def take_turn(method: Method, net: Net, task: Task[Any, Mine]) -> Reply[Any, Mine]:
    """All that happens at one client: the method's work, then the codecs of its channels."""
    reply = method.work(net, task._replace(mine=task.mine.method))
    sent, codecs = {}, dict(task.mine.codecs)
    for name, tree in reply.up._asdict().items():
        codec = method.up[name].encode
        if codec is not None:
            coded, carried = encoded(net, tree)
            memory = codecs[name] if name in codecs else codec.init(coded)
            coded, codecs[name] = codec.apply(coded, memory, fold(task.data.turn.key, code(name)))
            tree = {**coded, **carried}
        sent[name] = tree
    return Reply(type(reply.up)(**sent), Mine(reply.mine, codecs), reply.weight)
