"""A server in a process of its own, to be searched: ``python -m tests.engines.searched APP ADDRESS DUMP yes|no``.

It has no client's data, plays one round with or without secure aggregation, and waits for a line where its memory is
interesting, after it has written everything that its objects hold into the file DUMP. Beside it, the file ``came`` has
what nodes have sent.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from tests.engines.setting import method, run_settings
from weft.deploy.clients import Remote
from weft.deploy.server import elsewhere, stand_in
from weft.deploy.superlink import grid
from weft.experiment.plugins import load_methods
from weft.experiment.run import Run
from weft.privacy.secure_server import Server

NODES = 3
turns: list[int] = []
APP, ADDRESS, DUMP, SECURE = Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]), sys.argv[4] == "yes"


def data_of(thing: Any) -> bytes:
    if isinstance(thing, (bytes, bytearray)):
        return bytes(thing)
    if isinstance(thing, np.ndarray) and not thing.dtype.hasobject:
        return thing.tobytes()
    if isinstance(thing, torch.Tensor) and thing.layout is torch.strided and thing.device.type == "cpu":
        return bytes(thing.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return b""


def pause() -> None:
    """Write down what objects hold, and wait to be searched."""
    seen: set[int] = set()
    with DUMP.open("wb") as out:
        for holder in gc.get_objects():
            for thing in (holder, *gc.get_referents(holder)):
                if id(thing) not in seen and type(thing) in (bytes, bytearray, np.ndarray, torch.Tensor):
                    seen.add(id(thing))
                    out.write(data_of(thing))
    print("paused", flush=True)
    sys.stdin.readline()


def came(remote: Remote, node: int, reply: Any) -> bool:
    """Write down what has come; whether it is the last answer to a turn."""
    with DUMP.with_name("came").open("ab") as out:
        for record in reply.content.array_records.values() if reply.has_content() else ():
            for array in record.values():
                out.write(array.data)
    turns.extend([node] if reply.metadata.message_type == "train.turn" else [])
    return len(turns) == NODES and reply.metadata.message_type == "train.turn"


def before(owner: Any, name: str, now: Callable[..., bool] = lambda *given: True) -> None:
    """Pause when this is called with what is interesting, before it does anything."""
    inner = getattr(owner, name)

    def paused(*given: Any, **named: Any) -> Any:
        if now(*given):
            pause()
        return inner(*given, **named)

    setattr(owner, name, paused)


if __name__ == "__main__":
    load_methods()
    before(Remote, "_fine", came)  # all uploads are made, and an answer has come
    before(Server, "survivors")  # all masked values are in
    before(Remote, "keep")  # the end of the round
    found = yaml.safe_load((APP / "settings.yaml").read_text())["deploy"]
    data, chosen = stand_in(found["examples"], found["clients"]), method("fedavg")
    how = {"rounds": 1, "cohort": 1.0, "precision": "fp32", "secure_aggregation": SECURE}
    settings = run_settings(executor="flower", **how)
    with grid(APP, ADDRESS) as made:
        places = elsewhere(made, chosen, data, settings, min_clients=found["clients"])
        Run.prepare(chosen, data, settings, elsewhere=places).go()
