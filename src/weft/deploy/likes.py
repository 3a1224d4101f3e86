"""What an upload looks like, so that what comes from a node can be checked against it."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._pytree import tree_map

from weft.core.here import Here
from weft.core.method import Method, Round
from weft.core.task import Data, Task
from weft.core.turn import take_turn


def likes(method: Method, here: Here, client: int, population: int) -> dict[tuple[bool, int], Any]:
    """(whether it is the opening, exchange) -> one upload of zeros, from one step of a client that is here."""
    ids, net = torch.tensor([client]), next(g.net for g in here.groups if client in g.ids)
    server = method.server(here.groups[0].net, here.groups[0].net.init(0))
    rnd = Round(1, ids, population, here.groups[0].net)
    mine = tree_map(lambda x: x[0].to(here.examples.y.device), here.states(ids))
    found: dict[tuple[bool, int], Any] = {}
    for opening, first in ((False, method), (True, method.opening)):
        turn, exchange = first, 0
        while turn is not None:
            down = turn.send(server, rnd)
            down = tree_map(lambda x: x[0], down) if turn.private_send else down
            drawn = tree_map(lambda x: x[0], here.draw(1, ids, turn.phases, torch.zeros(1, dtype=torch.int64)))
            drawn = drawn._replace(steps={k: s[:1] for k, s in drawn.steps.items()})
            reply = take_turn(turn, net, Task(down, mine, Data(here.examples, drawn), here.public))
            found[opening, exchange] = tree_map(lambda x: torch.zeros_like(x, device="cpu"), reply.up)
            turn, exchange = turn.next, exchange + 1
    return found
