"""What a node's clients keep, on disk: by client, and by the round and the exchange after which it was kept.

The server says with every message after which round a client's last answer counted. So an answer that was lost, or a
server that goes on from an older checkpoint, changes nothing: the state of that round is still here.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

from safetensors import safe_open
from torch import Tensor

from weft.core.turn import Mine
from weft.experiment import checkpoint
from weft.experiment.streamed import Blocks, stream


class Shelf:
    """States of some clients in one run."""

    def __init__(self, folder: Path, first: Callable[[int], Mine]) -> None:
        """`first`: client -> its state before its first turn, which is round 0."""
        self._folder, self._first = folder, first
        self._known: dict[tuple[int, int, int], Mine] = {}

    def take(self, client: int, number: int, exchange: int | None = None) -> Mine:
        """The state after an exchange of a round, by default the last one; KeyError if it is not here."""
        if number == 0:
            return self._first(client)
        if exchange is None:
            exchange = max((e for n, e in self._here(client) if n == number), default=0)
        key = client, number, exchange
        if key not in self._known:
            path = self._path(*key)
            if not path.is_file():
                raise KeyError((client, number))
            with safe_open(path, "pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
                shape = json.loads(file.metadata()["state"])
            self._known[key] = checkpoint.rebuilt(shape, tensors, self._first(client))
        return self._known[key]

    def put(self, client: int, number: int, exchange: int, mine: Mine) -> None:
        """Write a state, whole or not at all."""
        self._known[client, number, exchange] = mine
        tensors: dict[str, Tensor | Blocks] = {}
        shape = checkpoint.described(mine, tensors)
        path = self._path(client, number, exchange)
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part")
        stream(part, tensors, {"state": json.dumps(shape)})
        os.replace(part, path)

    def forget(self, client: int, keep: set[int]) -> None:
        """Drop all of a client's states but those of these rounds, and newer ones."""
        for number, exchange in self._here(client):
            if number not in keep and number < max(keep, default=0):
                self._path(client, number, exchange).unlink(missing_ok=True)
                self._known.pop((client, number, exchange), None)

    def rounds(self, client: int) -> list[int]:
        """The rounds after which this client's state is here, ascending."""
        return sorted({number for number, _ in self._here(client)})

    def _here(self, client: int) -> list[tuple[int, int]]:
        """(round, exchange) of each state."""
        stems = [p.stem.split("-") for p in (self._folder / f"client-{client}").glob("*.safetensors")]
        return [(int(number), int(exchange)) for number, exchange in stems]

    def _path(self, client: int, number: int, exchange: int) -> Path:
        return self._folder / f"client-{client}" / f"{number:06d}-{exchange}.safetensors"
