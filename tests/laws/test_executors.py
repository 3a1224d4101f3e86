"""Batched = loop = through bytes, whatever the chunking, for every method."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tests.laws.toys import gap, replayed, subjects, trained
from weft.compiled import compiler
from weft.core import Method, Net, Reply, Task, here
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


@pytest.mark.parametrize("name", subjects("executors"))
def test_batched_is_loop(name: str) -> None:
    assert gap(trained(name), replayed(name, loop)) <= 1e-9


@pytest.mark.parametrize("name", subjects("executors"))
def test_chunks_change_nothing(name: str) -> None:
    assert gap(trained(name), replayed(name, Batched(chunk=3))) <= 1e-9


@pytest.mark.parametrize("name", subjects("executors"))
def test_plans_change_nothing(name: str) -> None:
    """Traced steps of two clients and of one, in slices side by side, and clients alone in their programs."""
    for plan in (Batched(4, 2, rounds=WORTH), Batched(1, 2)):
        assert gap(trained(name), replayed(name, plan)) <= 1e-9


@pytest.mark.skipif(not compiler(), reason="no C compiler")
@pytest.mark.parametrize("name", subjects("executors"))
def test_machine_code_changes_nothing(name: str) -> None:
    plan = Batched(4, 2, compile="always")
    assert gap(trained(name), replayed(name, plan)) <= 1e-9
    assert plan.compiled == (name not in WITHOUT)


WITHOUT = {"fedcac", "fedkd"}
"""Methods with an operation that has no C: the largest few, a singular value decomposition."""


@pytest.mark.parametrize("name", subjects("executors"))
def test_blocks_change_nothing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Uploads that are summed part by part."""
    whole = trained(name)
    monkeypatch.setattr(here, "STACK", 1)
    assert gap(whole, replayed(name)) <= 1e-9


@pytest.mark.parametrize("name", subjects("executors"))
def test_bytes_change_nothing(name: str) -> None:
    assert gap(replayed(name, loop), replayed(name, loop, through=through_bytes)) == 0
