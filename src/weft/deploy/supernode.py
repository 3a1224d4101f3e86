"""``weft deploy node``: a SuperNode that stays warm.

``flower-supernode`` starts a Python process for every message and asks for the next one every 3 seconds, for which
Flower 1.41 has no setting. This one speaks the same protocol through Flower's client (TLS, signed requests, signs of
life, chunked objects), asks as often as it is told to, and keeps the method, the data and the traced steps in memory.
It never runs code that the server sends: the app bundle is not even fetched.
"""

from __future__ import annotations

import logging
import signal
import time
from collections.abc import Callable
from pathlib import Path

from flwr.app import Error, Message
from flwr.common.constant import ErrorCode

from weft.deploy.fleet import Fleet, RunEnded, connected
from weft.deploy.node import Node
from weft.deploy.settings import NodeSettings

log = logging.getLogger("weft.node")


def run_node(path: Path) -> None:
    """Answer the SuperLink that a node's settings file names, until the process is ended.

    Raises:
        SettingError: a setting is wrong.
        SystemExit: the server is not to be trusted, or refuses this node.
    """
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    settings = NodeSettings.read(path)
    node = Node(settings)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with connected(settings.superlink, settings.certificate, settings.key) as fleet:
        while True:
            if not answered(fleet, node.answer):
                time.sleep(settings.poll)


def answered(fleet: Fleet, answer: Callable[[Message], Message]) -> bool:
    """Answer one message; False if there was none. What goes wrong in an exchange does not end the node."""
    try:
        message = fleet.receive()
        if message is None:
            return False
        started = time.monotonic()
        try:
            reply = answer(message)
        except Exception as error:
            log.exception("a message of kind %s was not answered", message.metadata.message_type)
            why = f"{type(error).__name__}: {error}"
            reply = Message(Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, why), reply_to=message)
        spent = time.monotonic() - started
        # the server's times, so that a node's clock does not outdate its reply
        reply.metadata.created_at = message.metadata.created_at + spent
        reply.metadata.ttl = max(message.metadata.ttl - spent, 1.0)
        fleet.send(reply, spent)
    except RunEnded:
        log.info("the run has ended, and its message is left unanswered")
    except Exception as error:
        log.error("an exchange failed: %s: %s", type(error).__name__, error)
        return False
    return True
