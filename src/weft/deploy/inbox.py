"""Messages as their parts arrive.

Flower announces a message before its parts are there, and its own ends wait for them: a sender that dies in between
would hold up everybody for the three minutes that a SuperLink keeps a place for the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from flwr.app import Message
from flwr.proto.message_pb2 import ObjectTree
from flwr.proto.node_pb2 import Node
from flwr.supercore.inflatable.inflatable_object import iterate_object_tree
from flwr.supercore.inflatable.inflatable_protobuf_utils import (
    make_confirm_message_received_fn_protobuf,
    make_pull_object_fn_protobuf,
)
from flwr.supercore.inflatable.inflatable_utils import (
    ObjectPullError,
    ObjectUnavailableError,
    inflate_object_from_contents,
)


@dataclass
class Coming:
    """A message that has been announced."""

    run: int
    answers: str  # the message that it is a reply to, or ""
    missing: list[str]  # its parts that are not here yet
    parts: dict[str, bytes] = field(default_factory=dict)


class Inbox:
    """Messages that have been announced, until they are whole; nothing waits."""

    def __init__(self) -> None:
        self._coming: dict[str, Coming] = {}

    def announce(self, messages: Iterable[Any], trees: Iterable[ObjectTree]) -> None:
        """Take in what a SuperLink has said of messages."""
        for message, tree in zip(messages, trees, strict=True):
            about = message.metadata
            parts = [part.object_id for part in iterate_object_tree(tree)]
            self._coming[about.message_id] = Coming(about.run_id, about.reply_to_message_id, parts)

    def answers(self) -> set[str]:
        """The messages whose replies are on their way."""
        return {one.answers for one in self._coming.values()}

    def whole(
        self, pull: Callable[[Any], Any], confirm: Callable[[Any], Any], node: Node, to: Container[str] | None = None
    ) -> Iterator[Message]:
        """The messages that have become whole, or only those that are replies to `to`.

        `pull` and `confirm` are Flower's calls, for this end. A message that can no longer become whole is forgotten.
        """
        for name, one in list(self._coming.items()):
            if to is not None and one.answers not in to:
                continue
            del self._coming[name]
            fetch = make_pull_object_fn_protobuf(pull, node, one.run)
            try:
                while one.missing:
                    one.parts[one.missing[-1]] = fetch(one.missing[-1])
                    one.missing.pop()
            except ObjectUnavailableError:
                self._coming[name] = one
                continue
            except ObjectPullError:
                continue
            make_confirm_message_received_fn_protobuf(confirm, node, one.run)(name)
            message = inflate_object_from_contents(name, one.parts)
            assert isinstance(message, Message)
            message.metadata.__dict__["_message_id"] = name
            yield message
