"""A node that goes wrong in the rounds that it is told.

Faults: die (in mid-training), cut (dies in mid-upload), slow:SECONDS (20 times slower, and so many at least), corrupt,
oversized, nan.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import torch
from flwr.app import Array, ArrayRecord, Message
from httpcore._backends.sync import SyncStream
from safetensors.torch import load

from weft.deploy import node, supernode
from weft.deploy.records import noted
from weft.wire import pack

FAULTS: dict[str, str] = {}


def changed(reply: Message, change: Any) -> None:
    """Other bytes on every channel."""
    for name in [n for n in reply.content if n.startswith("up.")]:
        entries = {k: change(v.data) for k, v in reply.content[name].items()}
        reply.content[name] = ArrayRecord({k: Array("uint8", (len(v),), "weft", v) for k, v in entries.items()})


def not_numbers(data: bytes) -> bytes:
    return pack({k: torch.full_like(v, torch.nan) for k, v in load(data).items()})


def cut() -> None:
    """Die when half of the first large part of an upload has been sent."""
    write = SyncStream.write

    def half(stream: Any, buffer: bytes, timeout: float | None = None) -> None:
        if len(buffer) > 10_000:
            stream._sock.sendall(buffer[: len(buffer) // 2])
            os._exit(9)
        write(stream, buffer, timeout)

    SyncStream.write = half  # type: ignore[method-assign]


class Faulty(node.Node):
    """Answers as a node does, but for its faults."""

    def answer(self, message: Message) -> Message:
        if not message.metadata.message_type.endswith(".turn"):
            return super().answer(message)
        fault = FAULTS.get(str(noted(message.content, "turn")["number"]), "")
        if fault == "die":
            os._exit(9)
        start = time.monotonic()
        reply = super().answer(message)
        if fault.startswith("slow"):
            time.sleep(max(19 * (time.monotonic() - start), float(fault.partition(":")[2])))
        if fault == "corrupt":
            changed(reply, lambda data: data[: len(data) // 2])
        if fault == "oversized":
            changed(reply, lambda data: bytes(8_000_000))
        if fault == "nan":
            changed(reply, not_numbers)
        if fault == "cut":
            cut()
        return reply


def run(path: Path, faults: dict[str, str]) -> None:
    """Be the node of a settings file, with a fault in each of these rounds."""
    FAULTS.update(faults)
    supernode.Node = Faulty  # type: ignore[misc]
    supernode.run_node(path)
