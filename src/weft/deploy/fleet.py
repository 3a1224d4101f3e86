"""A node's connection to a SuperLink: Flower's own client and messages, with errors that say what to do."""

from __future__ import annotations

import logging
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

import httpx
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_ssh_private_key
from flwr.app import Message
from flwr.app.message.message import remove_content_from_message as without_content
from flwr.common.serde import message_to_proto
from flwr.proto.fleet_pb2 import ActivateNodeRequest, DeactivateNodeRequest, PullMessagesRequest, PushMessagesRequest
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest
from flwr.proto.node_pb2 import Node
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree, no_object_id_recompute
from flwr.supercore.inflatable.inflatable_protobuf_utils import make_push_object_fn_protobuf
from flwr.supercore.inflatable.inflatable_utils import push_objects
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor
from flwr.supercore.primitives.asymmetric import public_key_to_bytes
from flwr.supernode.fleet_http_client import FleetHttpClient
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor

from weft.core.errors import SettingError
from weft.deploy.clock import Clock
from weft.deploy.inbox import Inbox

log = logging.getLogger("weft.node")
HEARTBEAT = 10.0
"""Seconds that Flower is promised between signs of life, its least; a node that is silent for twice that is offline."""
CLOCKS = (-300.0, 5.0)
"""Seconds that a node's clock may be behind (as a negative number) or before the server's: Flower refuses others."""


class RunEnded(Exception):
    """The run that a message belonged to is over."""


class Fleet:
    """One node's end of a SuperLink."""

    def __init__(self, superlink: str, client: FleetHttpClient, trusted: bytes, public: bytes) -> None:
        self._superlink, self._client, self._trusted, self._public = superlink, client, trusted, public
        self._node, self._inbox = Node(), Inbox()

    def receive(self) -> Message | None:
        """The next message for this node, if there is one."""
        got = self._try(self._client.PullMessages, PullMessagesRequest(node=self._node))
        self._inbox.announce(got.messages_list, got.message_object_trees)
        pull, confirm = self._trying(self._client.PullObject), self._trying(self._client.ConfirmMessageReceived)
        return next(self._inbox.whole(pull, confirm, self._node), None)

    def send(self, reply: Message, seconds: float) -> None:
        """Send a reply that took so long to make."""
        run = reply.metadata.run_id
        with no_object_id_recompute():
            reply.metadata.__dict__["_message_id"] = reply.object_id
            request = PushMessagesRequest(
                node=self._node,
                messages_list=[message_to_proto(without_content(reply) if reply.has_content() else reply)],
                message_object_trees=[get_object_tree(reply)],
                clientapp_runtime_list=[seconds],
            )
            got = self._try(self._client.PushMessages, request)
            push = self._trying(self._client.PushObject)
            push_one = make_push_object_fn_protobuf(push, self._node, run, got.session_id)
            push_objects(get_all_nested_objects(reply), push_one, object_ids_to_push=set(got.objects_to_push))

    def activate(self) -> int:
        """Tell the server that this node is here; returns its number there.

        Raises:
            SystemExit: the server does not take it in.
        """
        request = ActivateNodeRequest(public_key=self._public, heartbeat_interval=HEARTBEAT)
        clock, said = Clock(), False
        while True:
            try:
                self._node = Node(node_id=self._try(self._client.ActivateNode, request).node_id)
                return int(self._node.node_id)
            except httpx.HTTPStatusError as error:
                if error.response.status_code != httpx.codes.PRECONDITION_FAILED:
                    raise
                if clock.waited() > 3 * HEARTBEAT:  # Flower does not say which of the two it is
                    raise SystemExit(
                        f"weft: {self._superlink} does not take this node in: its key is not registered there (`flwr "
                        "supernode register NAME.pub`), or another process uses it (give every node a key of its own)"
                    ) from None
            if not said:
                log.warning(
                    "not taken in yet; a node that was killed is held to be there for some seconds: trying again"
                )
                said = True
            time.sleep(1)

    def beat(self, stop: threading.Event) -> None:
        """Signs of life, until `stop` is set."""
        while not stop.wait(HEARTBEAT / 2):
            try:
                self._client.SendNodeHeartbeat(SendNodeHeartbeatRequest(node=self._node, heartbeat_interval=HEARTBEAT))
            except httpx.HTTPError as error:
                log.debug("no heartbeat: %s", error)

    def leave(self) -> None:
        """Tell the server that this node is off."""
        self._client.DeactivateNode(DeactivateNodeRequest(node_id=self._node.node_id))

    def _trying(self, call: Callable[[Any], Any]) -> Callable[[Any], Any]:
        return lambda request: self._try(call, request)

    def _try(self, call: Callable[[Any], Any], request: Any) -> Any:
        """Call the server; while it cannot be reached, wait for it."""
        said = False
        while True:
            try:
                got = call(request)
            except httpx.TransportError as error:
                _refuse_certificate(self._superlink, error)
                if not said:
                    log.warning("the server at %s cannot be reached (%s): trying again", self._superlink, error)
                said = True
                time.sleep(1)
            except httpx.HTTPStatusError as error:
                code = error.response.status_code
                if code == httpx.codes.FORBIDDEN:
                    raise RunEnded from None
                if code == httpx.codes.UNAUTHORIZED:
                    _compare_clocks(self._superlink, self._trusted)  # one that goes wrong is refused the same way
                    raise SystemExit(
                        f"weft: {self._superlink} does not know this node's key: register it there with "
                        "`flwr supernode register NAME.pub`"
                    ) from None
                if code not in (502, 503, 504):
                    raise
                time.sleep(1)
            else:
                if said:
                    log.info("the server at %s is there again", self._superlink)
                return got


@contextmanager
def connected(superlink: str, certificate: Path, key: Path) -> Iterator[Fleet]:
    """A connection to the SuperLink at host:port.

    Raises:
        SettingError: the key or the certificate cannot be read.
        SystemExit: the server is not the one that the certificate vouches for, or it does not take this node in.
    """
    try:
        private = load_ssh_private_key(key.read_bytes(), None)
        trusted = certificate.read_bytes()
        ssl.create_default_context(cadata=trusted.decode())
    except OSError as error:
        raise SettingError(f"{error.filename} cannot be read ({error.strerror}): give the file of this node") from None
    except (ValueError, UnicodeDecodeError) as error:
        raise SettingError(f"{key} or {certificate} is no key or certificate ({error}): give this node's") from None
    if not isinstance(private, ec.EllipticCurvePrivateKey):
        raise SettingError(f"key = {key} is no EC key: make one with `ssh-keygen -t ecdsa -b 384 -f {key}`")
    _compare_clocks(superlink, trusted)
    public = private.public_key()
    signs: list[Any] = [
        RuntimeVersionHttpInterceptor(component_name="SuperNode"),
        NodeAuthHttpInterceptor(private, public),
    ]
    stop = threading.Event()
    with FleetHttpClient.from_server_address(superlink, False, trusted, signs) as client:
        fleet = Fleet(superlink, client, trusted, public_key_to_bytes(public))
        log.info("connected to %s as node %d", superlink, fleet.activate())
        heart = threading.Thread(target=fleet.beat, args=(stop,), daemon=True)
        heart.start()
        try:
            yield fleet
        finally:
            stop.set()
            heart.join()
            try:
                fleet.leave()
            except (httpx.HTTPError, RunEnded, SystemExit):
                log.debug("the server was not told that this node is off")


def _compare_clocks(superlink: str, trusted: bytes) -> None:
    """Refuse to start with a clock or a certificate for which the server would only be silent."""
    context = ssl.create_default_context(cadata=trusted.decode())
    said = False
    while True:
        try:
            answer = httpx.get(f"https://{superlink}/health", verify=context, timeout=10)
            break
        except httpx.TransportError as error:
            _refuse_certificate(superlink, error)
            if not said:
                log.warning("the server at %s cannot be reached (%s): trying again", superlink, error)
            said = True
            time.sleep(1)
    if "date" not in answer.headers:
        return
    ahead = time.time() - parsedate_to_datetime(answer.headers["date"]).timestamp()
    if not CLOCKS[0] < ahead < CLOCKS[1]:
        where = "ahead of" if ahead > 0 else "behind"
        raise SystemExit(
            f"weft: the clock of this machine is {abs(ahead):.0f} s {where} that of {superlink}, which checks when a "
            "request was signed: set the clock"
        )


def _refuse_certificate(superlink: str, error: httpx.TransportError) -> None:
    text = str(error)
    if "certificate" in text.lower():
        why = text.partition("certificate verify failed: ")[2].partition(" (_ssl")[0] or text
        raise SystemExit(
            f"weft: the certificate of {superlink} is not to be trusted ({why}): check the address, and give the node "
            "the `certificate` of the authority that signed the server's"
        ) from None
