"""What an upload looks like, so that what comes from a node can be checked against it."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._pytree import tree_flatten, tree_map

from weft.core.clients import Message
from weft.core.here import Here, turn_of
from weft.core.method import Method
from weft.core.task import Data, Task
from weft.core.turn import take_turn


class Likes:
    """Message -> one upload of zeros, from one step of a client that is here; one for each form of a download."""

    def __init__(self, method: Method, here: Here, client: int) -> None:
        self._method, self._here, self._ids = method, here, torch.tensor([client])
        self._net = next(g.net for g in here.groups if client in g.ids)
        self._known: dict[Any, Any] = {}

    def __call__(self, message: Message) -> Any:
        """The answer of one client to this message."""
        turn = turn_of(self._method, message)
        down = tree_map(lambda x: x[0], message.down) if turn.private_send else message.down
        leaves, spec = tree_flatten(down)
        form = (message.number == 0, message.exchange, spec, tuple((x.shape, x.dtype) for x in leaves))
        if form not in self._known:
            self._known[form] = self._answer(turn, down)
        return self._known[form]

    def _answer(self, turn: Method, down: Any) -> Any:
        here, first = self._here, torch.zeros(1, dtype=torch.int64)
        mine = tree_map(lambda x: x[0].to(here.examples.y.device), here.states(self._ids))
        drawn, _ = here.drawn(turn, Message(1, 0, self._ids, first, down), first)
        drawn = tree_map(lambda x: x[0], drawn)
        drawn = drawn._replace(steps={k: s[:1] for k, s in drawn.steps.items()})
        reply = take_turn(turn, self._net, Task(down, mine, Data(here.examples, drawn), here.public))
        return tree_map(lambda x: torch.zeros_like(x, device="cpu"), reply.up)
