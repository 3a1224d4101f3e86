"""A grid without a network: messages go to nodes in this process, as the bytes that they would be."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import yaml
from flwr.app import Message
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from flwr.supercore.task_identity import TaskIdentity

from weft.deploy.node import Node
from weft.deploy.settings import NodeSettings

Answer = Callable[[Message], Message | None]


class Line:
    """Enough of `flwr.serverapp.Grid` for a run; `nodes` are those that are connected."""

    def __init__(self, **nodes: Answer) -> None:
        self.nodes = {int(name.removeprefix("node")): answer for name, answer in nodes.items()}
        self.replies: dict[str, Message] = {}
        TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1
        self.bytes: list[tuple[int, str, bytes]] = []  # (node, kind, all that it sent)

    def get_node_ids(self) -> list[int]:
        return list(self.nodes)

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        names = []
        for message in messages:
            message.metadata.__dict__["_message_id"] = name = message.object_id
            names.append(name)
            node = message.metadata.dst_node_id
            reply = self.nodes[node](carried(message)[0])
            if reply is not None:
                there, sent = carried(reply)
                self.replies[name] = there
                self.bytes.append((node, message.metadata.message_type, sent))
        return names

    def pull_messages(self, names: Iterable[str]) -> list[Message]:
        return [self.replies.pop(name) for name in list(names) if name in self.replies]


def carried(message: Message) -> tuple[Message, bytes]:
    """(the message as it arrives, its bytes on the way)."""
    name = message.object_id
    objects = {k: v.deflate() for k, v in get_all_nested_objects(message).items()}
    sent = b"".join(objects.values())
    there = inflate_object_from_contents(name, objects)
    assert isinstance(there, Message)
    there.metadata.__dict__["_message_id"] = message.metadata.message_id
    return there, sent


def node(app: Path, name: str, **changed: Any) -> Node:
    """A node of a deployment folder, with some settings changed."""
    home = app / "nodes"
    path = home / f"{name}-here.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load((home / f"{name}.yaml").read_text()) | changed))
    return Node(NodeSettings.read(path))


def three(place: Path, home: Path, **changed: Any) -> dict[str, Answer]:
    """The three nodes of the deployment folder ``app`` in `place`, which keep their states in `home`."""
    return {
        f"node{i + 1}": node(place / "app", f"node-{i}", state=str(home / f"{i}"), **changed).answer for i in range(3)
    }
