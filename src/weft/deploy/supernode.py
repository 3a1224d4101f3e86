"""A SuperNode that stays warm: Flower's own connection, with the answers given in this process.

``flower-supernode`` starts a Python process for every message and asks for the next one every 3 seconds, which Flower
1.41 has no setting for. This one speaks the same protocol through the same client (TLS, signed requests, heartbeats,
chunked objects), asks as often as it is told to, and keeps the method, the data and the traced steps in memory. It never
runs code that the server sends: an app bundle is not even fetched.
"""

from __future__ import annotations

import logging
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_ssh_private_key
from flwr.app import Error, Message
from flwr.common.constant import ErrorCode
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_tree,
    iterate_object_tree,
    no_object_id_recompute,
)
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents, pull_objects, push_objects
from flwr.supercore.run import RunNotRunningException
from flwr.supernode.fleet_http_connection import http_request_response

from weft.core.errors import SettingError
from weft.deploy.node import Node
from weft.deploy.settings import NodeSettings

Answer = Callable[[Message], Message]
log = logging.getLogger("weft.node")


def serve(
    answer: Answer, superlink: str, certificate: Path, key: Path, *, poll: float = 0.2, stop: Callable[[], bool] = bool
) -> None:
    """Connect to a SuperLink and answer its messages until `stop` says so; it reconnects by itself.

    Args:
        answer: a message -> its reply; an exception becomes an error reply, and the node lives on.
        superlink: host:port.
        certificate: PEM file of the authority that signed the server's certificate.
        key: private key of this node, in OpenSSH form.
        poll: seconds between two questions for a message.
        stop: asked between two messages.

    Raises:
        SettingError: the key cannot be read.
        SystemExit: the SuperLink refuses this node.
    """
    with _connected(superlink, certificate, key) as (node, receive, send, pull, push, confirm):
        log.info("connected to %s as node %d", superlink, node)
        while not stop():
            try:
                got = receive()
                if got is None:
                    time.sleep(poll)
                    continue
                started = time.monotonic()
                message = _pulled(*got, pull, confirm)
                reply = _answered(answer, message)
                spent = time.monotonic() - started
                # times are the server's, so that a node's wrong clock does not outdate its reply
                reply.metadata.created_at = message.metadata.created_at + spent
                reply.metadata.ttl = max(message.metadata.ttl - spent, 1.0)
                _push(reply, spent, send, push)
            except RunNotRunningException:
                log.info("the run has ended: its message is left")
            except Exception as error:  # one bad exchange must not end the node
                if "certificate" in str(error).lower():
                    raise SystemExit(f"weft: {superlink} is not the server that {certificate} vouches for: {error}")
                log.error("an exchange with %s failed: %s", superlink, error)
                time.sleep(max(poll, 1.0))


@contextmanager
def _connected(superlink: str, certificate: Path, key: Path) -> Iterator[tuple[Any, ...]]:
    try:
        private = load_ssh_private_key(key.read_bytes(), None)
        assert isinstance(private, ec.EllipticCurvePrivateKey)
        trusted = certificate.read_bytes()
    except OSError as error:
        raise SettingError(f"{error.filename} cannot be read ({error.strerror}): give the file of this node") from None
    except (ValueError, AssertionError):
        raise SettingError(f"key = {key} is no EC key in OpenSSH form: make one with `weft deploy init`") from None
    with http_request_response(superlink, False, trusted, (private, private.public_key())) as made:
        node, receive, send, _, _, pull, push, confirm = made
        yield node, receive, send, pull, push, confirm


def _pulled(message: Message, tree: Any, pull: Any, confirm: Any) -> Message:
    """The message with its content."""
    run, name = message.metadata.run_id, message.metadata.message_id
    found = pull_objects([t.object_id for t in iterate_object_tree(tree)], lambda one: pull(run, one))
    confirm(run, name)
    whole = inflate_object_from_contents(name, found)
    assert isinstance(whole, Message)
    whole.metadata.__dict__["_message_id"] = name
    return whole


def _answered(answer: Answer, message: Message) -> Message:
    try:
        return answer(message)
    except Exception as error:
        log.exception("a message of kind %s was not answered", message.metadata.message_type)
        return Message(
            Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, f"{type(error).__name__}: {error}"), reply_to=message
        )


def _push(reply: Message, spent: float, send: Any, push: Any) -> None:
    with no_object_id_recompute():
        reply.metadata.__dict__["_message_id"] = reply.object_id
        wanted, session = send(reply, get_object_tree(reply), spent)
        run = reply.metadata.run_id
        push_objects(
            get_all_nested_objects(reply),
            lambda name, content: push(run, session, name, content),
            object_ids_to_push=wanted,
        )


def run_node(path: Path) -> None:
    """``weft deploy node FILE``: answer a SuperLink until the process is ended."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    settings = NodeSettings.read(path)
    node = Node(settings)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    serve(node.answer, settings.superlink, settings.certificate, settings.key, poll=settings.poll)
