"""One client after the other, as the method is written: for debugging."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._pytree import tree_map

from weft.core.method import Method
from weft.core.net import Net
from weft.core.task import Data, Examples, Reply, Task, Turn
from weft.core.turn import Mine, take_turn


def loop(
    method: Method, net: Net, down: Any, mine: Mine, examples: Examples, turn: Turn, public: Any
) -> Reply[Any, Mine]:
    """Run the turns of a cohort one by one; an error carries a note that names the client's place in it."""
    replies = []
    for i in range(len(turn.size)):
        one = tree_map(lambda x, i=i: x[i], (mine, turn))
        got = tree_map(lambda x, i=i: x[i], down) if method.private_send else down
        try:
            replies.append(take_turn(method, net, Task(got, one[0], Data(examples, one[1]), public)))
        except Exception as error:
            error.add_note(f"in the turn of member {i} of the cohort ({method.name})")
            raise
    return tree_map(lambda *x: torch.stack(x), *replies)  # type: ignore[no-any-return]
