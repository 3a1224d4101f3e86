"""A node that writes down what its clients send, and may die.

Into the folder go, for each turn, the uploads as they would lie in memory. If it holds a file ``NODE-dies``, such as
"round 2 masked", the node ends when it is asked for that step of a secure sum.
"""

from __future__ import annotations

import itertools
import os
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import Message
from torch.utils._pytree import tree_map

from tests.engines.setting import CLIENTS
from weft.deploy import node, supernode
from weft.deploy.records import noted
from weft.executors import Batched
from weft.privacy.fixed_point import FixedPoint, Layout
from weft.privacy.secure_clients import flattened, summands

HOME: list[Path] = []
"""The folder, and the node's settings file."""
NUMBERS = itertools.count()
BOUND, MOST = 64.0, 2.0**20


class Telling(Batched):
    """Runs turns as a node does, and writes down the uploads."""

    def __call__(self, turn: Any, net: Any, *given: Any) -> Any:
        reply = super().__call__(turn, net, *given)
        for i in range(len(reply.weight)):
            up, weight = tree_map(lambda x, i=i: x[i], (reply.up, reply.weight))
            values = flattened(turn, net, up, weight, BOUND, MOST, 0, 0)
            layout = Layout.of(summands(turn, net, up, weight, MOST))
            trees = {name: {k: v.numpy() for k, v in tree.items()} for name, tree in up._asdict().items()}
            largest = max((p for p in layout.places if p[0] in trees), key=lambda p: np.prod(p[2]))
            before = layout.places[: layout.places.index(largest)]
            first = int(sum(np.prod(shape) for _, _, shape in before))
            part = HOME[0] / f"{HOME[1].stem}-{next(NUMBERS)}.part"
            with part.open("wb") as out:
                plain = trees[largest[0]][largest[1]].reshape(-1)
                words = FixedPoint(CLIENTS, BOUND).encode(values)
                np.savez(out, plain=plain, values=values, words=words, first=first)
            os.replace(part, part.with_suffix(".npz"))
        return reply


class Dying(node.Node):
    """Answers as a node does, until it dies."""

    def answer(self, message: Message) -> Message:
        if message.metadata.message_type == "train.sum":
            told = noted(message.content, "step")
            end = HOME[0] / f"{HOME[1].stem}-dies"
            if end.exists() and f"{told['sum'].partition(',')[0]} {told['step']}" == end.read_text():
                os._exit(9)
        return super().answer(message)


def run(path: Path, folder: Path) -> None:
    """Be the node of a settings file, and write into this folder."""
    HOME.extend((folder, path))
    node.Batched = Telling  # type: ignore[misc]
    supernode.Node = Dying  # type: ignore[misc]
    supernode.run_node(path)
