"""Secure aggregation in a run: the same results for every method that adds up, and a server that holds no upload."""

from __future__ import annotations

import gc
import os
import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._pytree import tree_leaves

pytest.importorskip("cryptography", reason="secure aggregation needs the package cryptography")

from tests.laws.toys import CLIENTS, METHODS, cohort, gap, make, start, train
from tests.privacy.memory import found, regions

from weft.core import Method, SettingError, tune
from weft.core.channel import Sum
from weft.core.round import Federation, begin, play
from weft.privacy.fixed_point import FixedPoint, OutOfRange
from weft.privacy.private import Privacy, private
from weft.privacy.secure_client import Client
from weft.privacy.secure_clients import SecureClients, singly
from weft.privacy.secure_server import Server
from weft.server import Adaptive, median, total
from weft.wire import TopK


def secured(method: Method, **parts: Any) -> Federation:
    parts = {"most": 64.0, **parts}
    return begin(method, SecureClients(start(singly(method)).clients, method, b"test", **parts), CLIENTS, seed=1)


def trained(method: Method, **parts: Any) -> Federation:
    federation = secured(method, **parts)
    for number in (1, 2):
        federation = play(federation, number, cohort(number)).federation
    return federation


def state(federation: Federation) -> list[Any]:
    inner = getattr(federation.clients, "inner", federation.clients)
    every = [inner.states(group.ids) for group in federation.groups]
    return tree_leaves((federation.server, dict(federation.then), every, federation.turns))


def adds_up(method: Method | None) -> bool:
    return method is None or (
        bool(method.up)
        and all(isinstance(c.reduce, Sum) for c in method.up.values())
        and adds_up(method.next)
        and adds_up(method.opening)
    )


@pytest.mark.parametrize("name", [n for n in METHODS if adds_up(make(n))])
def test_results_are_those_of_plain_sums(name: str) -> None:
    method = make(name)
    assert gap(state(train(method, rounds=2)), state(trained(method))) <= 1e-9


@pytest.mark.parametrize("name", [n for n in METHODS if not adds_up(make(n))])
def test_methods_that_need_every_upload_are_refused(name: str) -> None:
    says = "sends nothing" if name in ("local", "btfl") else "needs every upload on channel"
    with pytest.raises(SettingError, match=says):
        singly(make(name))


def test_parts_of_channels_stay() -> None:
    """A codec at the client, sums without weights, a server optimiser, and noise after the sum."""
    for method in (
        tune(make("fedavg"), "model", encode=TopK(0.2)),
        tune(make("fedavg"), "model", reduce=total),
        tune(make("fedavg"), "model", reduce=Sum(weighted=True, divided=False)),
        tune(make("scaffold"), "model", then=Adaptive("adam", 0.01)),
    ):
        assert gap(state(train(method, rounds=2)), state(trained(method))) <= 1e-9
    from weft.local.buffers import with_buffers

    method = private(with_buffers(make("fedavg"), "local"), Privacy("central", 4, 0.5, 0.1, 0.5))
    assert gap(state(train(method, rounds=2)), state(trained(method))) <= 1e-9
    with pytest.raises(SettingError, match="needs every upload on channel 'model'"):
        singly(tune(make("fedavg"), "model", reduce=median))


def test_a_number_beyond_the_range_is_named() -> None:
    method = make("fedavg")

    def work(net: Any, task: Any) -> Any:
        reply = method.work(net, task)
        return reply._replace(up=type(reply.up)({k: 1e6 + 0 * v for k, v in reply.up.model.items()}))

    with pytest.raises(OutOfRange, match=r"round 1: client \d sends .* on channel 'model', beyond secure_range = 64"):
        trained(replace(method, work=work))
    with pytest.raises(OutOfRange, match=r"a weight of 12 is beyond secure_weight = 8"):
        trained(make("fedavg"), most=8.0)


def test_a_client_whose_upload_is_not_finite_is_left_out() -> None:
    method = make("fedavg")

    def work(net: Any, task: Any) -> Any:
        reply = method.work(net, task)
        broken = torch.where(task.data.count == 12, torch.nan, 1.0)
        return reply._replace(up=type(reply.up)({k: v * broken for k, v in reply.up.model.items()}))

    ids = torch.arange(CLIENTS)
    played = play(secured(replace(method, work=work)), 1, ids, skip_not_finite=True)
    assert played.skipped.tolist() == [1]
    others = play(start(method), 1, ids[ids != 1]).federation
    assert gap(state(others), state(played.federation)) <= 1e-9


def test_bytes_are_those_of_the_messages() -> None:
    method = make("fedavg")
    plain, secure = play(start(method), 1, cohort(1)).traffic, play(secured(method), 1, cohort(1)).traffic
    numbers = 1 + sum(v.numel() for v in start(method).server.model.values())
    n = 4
    pair, share, sealed = 8 + 64, 8 + 1 + 66, 8 + 12 + 132 + 16
    assert secure.up == n * (pair + (n - 1) * sealed + 8 * numbers + n * share)
    assert secure.down == plain.down + n * (n * pair + (n - 1) * sealed + n * 8)


# What the server holds

SIDE = """
import gc, sys
from weft.privacy.fixed_point import FixedPoint
from weft.privacy.secure_server import Server
def get():
    count = int.from_bytes(sys.stdin.buffer.read(4), "little")
    found = {}
    for _ in range(count):
        k, size = (int.from_bytes(sys.stdin.buffer.read(8), "little") for _ in "kn")
        found[k] = sys.stdin.buffer.read(size)
    return found
def put(messages):
    out = sys.stdout.buffer
    out.write(len(messages).to_bytes(4, "little"))
    for k, m in messages.items():
        out.write(k.to_bytes(8, "little") + len(m).to_bytes(8, "little") + m)
    out.flush()
point = FixedPoint(4)
server = Server(b"s", 3, 4096, point)
put(server.roster(get()))
put(server.envelopes(get()))
for client, message in get().items():
    server.add(client, message)
put(server.survivors())
words, alive = server.total(get())
values = point.decode(words)
put({0: values.tobytes()})
get()
"""


def _needles(values: np.ndarray, point: FixedPoint) -> list[bytes]:
    """Ways in which a vector may lie in memory; a part will do."""
    part = slice(1000, 1008)
    rounded = point.encode(values)
    return [values[part].tobytes(), values[part].astype(np.float32).tobytes(), rounded[part].tobytes()]


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="reads the memory of a process as Linux shows it")
def test_the_server_s_process_never_holds_an_upload() -> None:
    """Four clients here, one of which vanishes; the server in a process of its own, whose memory is searched."""
    point = FixedPoint(4)
    values = {k: np.random.default_rng(k).normal(size=4096) for k in range(4)}
    clients = {k: Client(k, b"s", 3) for k in values}
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    child = subprocess.Popen(
        [sys.executable, "-c", SIDE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment
    )
    assert child.stdin and child.stdout
    out, back = child.stdin, child.stdout

    def put(messages: dict[int, bytes]) -> None:
        out.write(len(messages).to_bytes(4, "little"))
        for k, m in messages.items():
            out.write(k.to_bytes(8, "little") + len(m).to_bytes(8, "little") + m)
        out.flush()

    def get() -> dict[int, bytes]:
        found = {}
        for _ in range(int.from_bytes(back.read(4), "little")):
            k, size = (int.from_bytes(back.read(8), "little") for _ in "kn")
            found[k] = back.read(size)
        return found

    def searched(needles: list[bytes]) -> int:
        try:
            return len(found(needles, regions(child.pid)))
        except PermissionError:
            pytest.skip("this machine does not let a process read its child's memory")

    single = [n for v in values.values() for n in _needles(v, point)]
    try:
        put({k: c.keys() for k, c in clients.items()})
        roster = get()
        put({k: clients[k].shares(m) for k, m in roster.items()})
        envelopes = get()
        masked = {k: clients[k].masked(m, point.encode(values[k])) for k, m in envelopes.items() if k != 3}
        put(masked)
        survivors = get()
        assert searched(single) == 0
        put({k: clients[k].reveal(m) for k, m in survivors.items()})
        total = np.frombuffer(get()[0])
        rounded = point.decode(sum((point.encode(values[k]) for k in range(3)), np.zeros(4096, point.kind)))
        assert np.array_equal(total, rounded)
        assert searched(single) == 0
        assert searched([total[1000:1008].tobytes()]) == 1  # so what is there is found
    finally:
        child.kill()
        child.wait()
        out.close()
        back.close()


def test_the_server_s_objects_never_hold_an_upload() -> None:
    """After every message, whatever can be pickled or reached from the server."""
    point = FixedPoint(3)
    values = {k: np.random.default_rng(k).normal(size=4096) for k in range(3)}
    clients, server = {k: Client(k, b"s", 2) for k in values}, Server(b"s", 2, 4096, point)
    needles = [n for v in values.values() for n in _needles(v, point)]

    def clean() -> None:
        reached, waiting = pickle.dumps(server), [server]
        seen: set[int] = set()
        while waiting:
            thing = waiting.pop()
            if id(thing) in seen or isinstance(thing, type) or callable(thing):
                continue
            seen.add(id(thing))
            if isinstance(thing, np.ndarray):
                reached += thing.tobytes()
            elif isinstance(thing, bytes):
                reached += thing
            waiting += gc.get_referents(thing)
        assert not any(needle in reached for needle in needles)

    roster = server.roster({k: c.keys() for k, c in clients.items()})
    envelopes = server.envelopes({k: clients[k].shares(m) for k, m in roster.items()})
    for k, message in envelopes.items():
        server.add(k, clients[k].masked(message, point.encode(values[k])))
        clean()
    words, _ = server.total({k: clients[k].reveal(m) for k, m in server.survivors().items()})
    clean()
    assert np.allclose(point.decode(words), sum(values.values()))
    needles = [words[1000:1008].tobytes()]
    with pytest.raises(AssertionError):
        clean()  # so what is there is found
