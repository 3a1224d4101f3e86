"""A node that must end by itself; the clock of some is an hour wrong, or goes wrong once they are taken in."""

from __future__ import annotations

import datetime
import sys
import time
from pathlib import Path

from flwr.supernode import node_auth_http_interceptor as signing

from weft.cli import main
from weft.deploy import fleet, supernode
from weft.deploy.clock import Clock

HOUR = 3600


class Hasty(Clock):
    """Five seconds for each that it waits."""

    def waited(self) -> float:
        return 5 * super().waited()


def run(path: Path, clock: str) -> None:
    """Be the node of a settings file until it ends, and say at last how long that took; `clock`: what it does."""
    start, right = time.monotonic(), time.time
    if clock in ("ahead", "behind"):
        time.time = lambda: right() + (HOUR if clock == "ahead" else -HOUR)
    if clock == "later":
        _later()
    if not clock:  # it is not taken in, however long it waits
        fleet.Clock = Hasty  # type: ignore[misc]
    try:
        sys.exit(main(["deploy", "node", str(path)]))
    finally:
        print(f"took {time.monotonic() - start}", flush=True)


def _later() -> None:
    whole, right, signed = supernode.Fleet.receive, time.time, signing.now

    def receive(fleet: supernode.Fleet) -> object:
        time.time = lambda: right() + HOUR
        signing.now = lambda: signed() + datetime.timedelta(seconds=HOUR)
        return whole(fleet)

    supernode.Fleet.receive = receive  # type: ignore[method-assign, assignment]
