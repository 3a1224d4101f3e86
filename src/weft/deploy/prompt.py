"""A server's grid that does not wait; a node, which has none, does without the SuperLink's packages that it imports."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import httpx
from flwr.app import Message
from flwr.proto.runtime_pb2 import PullAppMessagesRequest
from flwr.superlink.grid import HttpGrid

from weft.deploy.inbox import Inbox


class PromptGrid(HttpGrid):
    """The same grid, which gives the replies that are whole and does not wait for others.

    It tries again when a SuperLink is too busy to shake hands in time; Flower takes that for a wrong certificate.
    """

    def __init__(self, grid: HttpGrid) -> None:
        self.__dict__ = grid.__dict__
        self._inbox = Inbox()
        hopeless = self._retry_invoker.should_giveup
        assert hopeless
        self._retry_invoker.should_giveup = lambda e: not isinstance(e, httpx.TimeoutException) and hopeless(e)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterator[Message]:
        """The replies to these messages that are here, each loaded when it is asked for."""
        client, wanted = self._runtime_client, set(message_ids)
        if new := wanted - self._inbox.answers():
            got = client.PullMessages(PullAppMessagesRequest(message_ids=new))
            self._inbox.announce(got.messages_list, got.message_object_trees)
        yield from self._inbox.whole(client.PullObject, client.ConfirmMessageReceived, self.node, wanted)
