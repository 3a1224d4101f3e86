"""A node's side of secure aggregation: uploads are held here, and leave masked; see `weft.deploy.secure`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flwr.app import RecordDict
from torch import Tensor
from torch.utils._pytree import tree_map

from weft.core.clients import Message
from weft.core.errors import SettingError
from weft.core.here import culprit_of, finite
from weft.core.method import Method
from weft.core.net import Net
from weft.deploy.records import each_of, noted, put_each
from weft.experiment.settings import RunSettings
from weft.privacy.fixed_point import FixedPoint, OutOfRange
from weft.privacy.keys import Words
from weft.privacy.secure_client import Client
from weft.privacy.secure_clients import flattened
from weft.privacy.secure_messages import ProtocolError


class HeldUploads:
    """What the clients of a node have to send, from their turn until the sum that it is in is revealed."""

    def __init__(self, name: str, settings: RunSettings) -> None:
        """`name`: the node's; `settings` give the range and the largest weight."""
        self._name, self._bound, self._most = name, settings.secure_range, settings.secure_weight
        self._forget()

    def _forget(self) -> None:
        self._asked, self._said = "", dict[str, Any]()  # the turn that these uploads are of, and its answer
        self._words: dict[int, Words] = {}
        self._session, self._parties = "", dict[int, Client]()

    def again(self, asked: RecordDict) -> dict[str, Any] | None:
        """What the server is told of a turn that has been taken: its upload is still here. None: there is no such turn.

        The server asks again when too few clients were left for a sum.
        """
        return self._said | {"steps": 0} if self._asked == asked.object_id else None

    def hold(
        self, asked: RecordDict, message: Message, turn: Method, net: Net, up: Any, weights: Tensor, **said: Any
    ) -> dict[str, Any]:
        """Take in the stacked uploads of a turn: what the server is told, which is `said` and more."""
        point, ids = FixedPoint(noted(asked, "hold")["clients"], self._bound), message.ids.tolist()
        ok = finite(up, weights).tolist()
        said |= {"skipped": [k for k, fine in zip(ids, ok, strict=True) if not fine], "beyond": ""}
        said["culprit"] = "" if all(ok) else culprit_of(up)
        self._forget()
        try:
            for i, client in enumerate(ids):
                if ok[i]:
                    one = tree_map(lambda x, i=i: x[i], up)
                    about = self._bound, self._most, message.number, client
                    self._words[client] = point.encode(flattened(turn, net, one, weights[i], *about))
        except OutOfRange as error:
            self._words, said["beyond"] = {}, str(error)
        self._asked, self._said = asked.object_id, said
        return said

    def step(self, asked: RecordDict, reply: RecordDict) -> None:
        """One step of the protocol for some clients of this node.

        Raises:
            SettingError: there is nothing to sum, or the server asks for what the protocol does not allow.
        """
        told = noted(asked, "step")
        ids, step = told["ids"], told["step"]
        if step == "keys":
            self._session = told["sum"]
            self._parties = {k: Client(k, self._session.encode(), told["threshold"]) for k in ids if k in self._words}
        if told["sum"] != self._session or not set(ids) <= set(self._parties):
            raise SettingError(f"node {self._name} has no part in {told['sum']}: it was started anew since its turn")
        try:
            put_each(reply, "sum", self._answers(step, each_of(asked, "sum", ids)))
        except ProtocolError as error:
            raise SettingError(str(error)) from None
        if step == "reveal":  # an upload is in one sum only: the difference of two might show it
            self._forget()

    def _answers(self, step: str, messages: Mapping[int, bytes]) -> dict[int, bytes]:
        each = {k: (self._parties[k], message) for k, message in messages.items()}
        if step == "keys":
            return {k: party.keys() for k, (party, _) in each.items()}
        if step == "shares":
            return {k: party.shares(message) for k, (party, message) in each.items()}
        if step == "masked":
            return {k: party.masked(message, self._words[k]) for k, (party, message) in each.items()}
        return {k: party.reveal(message) for k, (party, message) in each.items()}
