"""Batched = loop = through bytes, whatever the chunking, for every method."""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import Any

import pytest

from tests.laws.toys import gap, make, subjects, train
from weft.core import Method, Net, Reply, Task, here
from weft.core.round import Federation
from weft.executors import Batched, loop
from weft.local.stack import WORTH
from weft.wire import pack, unpack


def through_bytes(method: Method) -> Method:
    """The method as over a network: `work` sees what unpacks from bytes, and the server what unpacks from bytes."""

    def carried(message: Any) -> Any:
        return type(message)(*(unpack(pack(tree), tree) for tree in message))

    def work(net: Net, task: Task[Any, Any]) -> Reply[Any, Any]:
        reply = method.work(net, task._replace(down=carried(task.down)))
        return reply._replace(up=carried(reply.up))

    following = through_bytes(method.next) if method.next else None
    return replace(method, work=work, next=following)


@functools.cache
def batched(name: str) -> Federation:
    """Some rounds of a method, all clients at once."""
    return train(make(name), Batched())


@functools.cache
def looped(name: str) -> Federation:
    """The same rounds, one client after the other."""
    return train(make(name), loop)


@pytest.mark.parametrize("name", subjects("executors"))
def test_batched_is_loop(name: str) -> None:
    assert gap(batched(name), looped(name)) <= 1e-9


@pytest.mark.parametrize("name", subjects("executors"))
def test_chunks_change_nothing(name: str) -> None:
    assert gap(batched(name), train(make(name), Batched(chunk=3))) <= 1e-9


@pytest.mark.parametrize("name", subjects("executors"))
def test_plans_change_nothing(name: str) -> None:
    """Traced steps, several programs side by side, and clients alone in theirs."""
    for plan in (Batched(3, 2, rounds=WORTH), Batched(1, 2)):
        assert gap(batched(name), train(make(name), plan)) <= 1e-9


@pytest.mark.parametrize("name", subjects("executors"))
def test_blocks_change_nothing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Uploads that are summed part by part."""
    whole = batched(name)
    monkeypatch.setattr(here, "STACK", 1)
    assert gap(whole, train(make(name), Batched())) <= 1e-9


@pytest.mark.parametrize("name", subjects("executors"))
def test_bytes_change_nothing(name: str) -> None:
    assert gap(looped(name), train(through_bytes(make(name)), loop)) == 0
