"""How the uploads of a turn come from the nodes to the server: one by one; as a sum: `weft.deploy.secure`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Protocol

from flwr.app import RecordDict

from weft.core.clients import Message, Part
from weft.core.method import Method
from weft.core.net import Net
from weft.deploy.parts import heard, together
from weft.deploy.records import Corrupt

WRONG = (ValueError, KeyError, TypeError, AttributeError)
"""What a reply raises that is not of the form that was asked for; `Corrupt` says so in words."""


class Turn(NamedTuple):
    """A turn that nodes are to take."""

    method: Method
    net: Net  # the server's
    message: Message
    like: Any  # one upload
    wanted: set[int]  # clients that may take it


class Nodes(Protocol):
    """Those who can be asked."""

    def ask(
        self, kind: str, wanted: set[int], asking: Callable[[list[int]], RecordDict], quorum: int = 0
    ) -> Iterator[tuple[int, list[int], RecordDict]]:
        """(node, its clients, what it answers) of all that answer in time.

        With a quorum of so many clients, it waits on at the deadline, and asks nodes that come back, too.
        """

    def training(self, turn: Turn, ids: list[int]) -> RecordDict:
        """The message that lets these clients take a turn."""

    def quorum(self, wanted: set[int]) -> int:
        """How many of these clients a turn needs."""

    def failed(self, node: int, error: Exception, outcome: str) -> None:
        """Put a node away that has answered nonsense; `outcome`: what comes of that."""


class Uploads(Protocol):
    """A way for uploads to come to the server."""

    def hear(self, nodes: Nodes, turn: Turn) -> list[Part]:
        """Let clients take a turn, and have parts of their answers."""


class Plain:
    """Every node sends the uploads of its clients; sums are joined as they come."""

    def hear(self, nodes: Nodes, turn: Turn) -> list[Part]:
        """See `Uploads`."""
        method, net, message, like, wanted = turn
        parts: list[Part] = []
        for node, ids, reply in nodes.ask("turn", wanted, lambda ids: nodes.training(turn, ids), nodes.quorum(wanted)):
            try:
                part = heard(method, net, message, like, ids, reply)
            except WRONG as error:
                nodes.failed(node, error, f"round {message.number} goes on without it")
                continue
            parts = together(method, net, [*parts, part])
        return parts


def told(error: Exception) -> str:
    """What is wrong with a reply, in words."""
    return str(error) if isinstance(error, Corrupt) else f"something is wrong ({type(error).__name__}: {error})"
