"""What a node's clients keep, on disk: by client and by the round after which it was kept.

The server says with every message after which round a client's last answer counted. So an answer that was lost, or a
server that goes on from an older checkpoint, changes nothing: the state of that round is still here.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.utils._pytree import tree_leaves

from weft.core.turn import Mine
from weft.experiment import checkpoint


class Shelf:
    """States of some clients in one run."""

    def __init__(self, folder: Path, first: Callable[[int], Mine]) -> None:
        """`first`: client -> its state before its first turn, which is round 0."""
        self._folder, self._first = folder, first
        self._known: dict[tuple[int, int], Mine] = {}

    def take(self, client: int, number: int) -> Mine:
        """The state after a round; KeyError if it is not here."""
        if number == 0:
            return self._first(client)
        if (client, number) not in self._known:
            path = self._path(client, number)
            if not path.is_file():
                raise KeyError((client, number))
            with safe_open(path, "pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
                shape = json.loads(file.metadata()["state"])
            self._known[client, number] = checkpoint.rebuilt(shape, tensors, self._first(client))
        return self._known[client, number]

    def put(self, client: int, number: int, mine: Mine) -> None:
        """Write a state, whole or not at all."""
        self._known[client, number] = mine
        tensors: dict[str, Tensor] = {}
        shape = checkpoint.described(mine, tensors)
        path = self._path(client, number)
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part")
        save_file(tensors, part, {"state": json.dumps(shape)})
        os.replace(part, path)

    def forget(self, client: int, keep: set[int]) -> None:
        """Drop all of a client's states but those of these rounds, and newer ones."""
        old = [n for n in self.rounds(client) if n not in keep and n < max(keep, default=0)]
        for number in old:
            self._path(client, number).unlink(missing_ok=True)
            self._known.pop((client, number), None)

    def rounds(self, client: int) -> list[int]:
        """The rounds after which this client's state is here, ascending."""
        return sorted(int(p.stem) for p in (self._folder / f"client-{client}").glob("*.safetensors"))

    def _path(self, client: int, number: int) -> Path:
        return self._folder / f"client-{client}" / f"{number:06d}.safetensors"


def empty(mine: Mine) -> bool:
    """Whether there is nothing to keep."""
    return not tree_leaves(mine)
