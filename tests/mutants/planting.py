"""How a mistake is planted: a phrase of one function's source is replaced, and put back afterwards."""

from __future__ import annotations

import inspect
import linecache
import textwrap
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from types import CodeType
from typing import Any

from tests.laws.toys import played
from weft.core.registry import REGISTRY
from weft.executors.machine import _PROGRAMS
from weft.local.stack import _TRACES

COMMON = "a common slip"
"""Where no public place is on record."""


@dataclass(frozen=True)
class Check:
    """A law or reference test; it must pass as the code is, and fail when the mistake is planted."""

    said: str  # as docs/mutants.md names it
    run: Callable[[], object]
    fails: type[Exception] | tuple[type[Exception], ...] = AssertionError


@dataclass(frozen=True)
class Edit:
    """Another phrase in the source of a function, whose code object is swapped: every importer sees the mistake."""

    at: Callable[..., Any]
    old: str
    new: str

    @property
    def said(self) -> str:
        return f"`{self.old}` → `{self.new}`"

    @contextmanager
    def planted(self) -> Iterator[None]:
        function: Any = inspect.unwrap(self.at)
        source = textwrap.dedent(inspect.getsource(function))
        assert source.count(self.old) == 1, f"{self.old!r} stands {source.count(self.old)} times in {function.__name__}"
        changed = "from __future__ import annotations\n" + source.replace(self.old, self.new)
        name = f"<{self.new} in {function.__qualname__}>"
        linecache.cache[name] = (len(changed), None, changed.splitlines(True), name)  # another edit may read it
        parts = compile(changed, name, "exec").co_consts
        right = function.__code__
        (function.__code__,) = [c for c in parts if isinstance(c, CodeType) and c.co_name == right.co_name]
        try:
            yield
        finally:
            function.__code__ = right
            del linecache.cache[name]


@dataclass(frozen=True)
class Default:
    """Other defaults of a registered method."""

    method: str
    option: str
    value: float

    @property
    def said(self) -> str:
        return f"`{self.option} = {self.value:g}` by default"

    @contextmanager
    def planted(self) -> Iterator[None]:
        entry = REGISTRY[self.method]
        REGISTRY[self.method] = replace(entry, make=partial(entry.make, **{self.option: self.value}))
        try:
            yield
        finally:
            REGISTRY[self.method] = entry


class Mutant:
    """A known mistake: what it is, where it was seen, the check that catches it, and how it is planted."""

    def __init__(self, name: str, seen: str, caught: Check, *plant: Edit | Default) -> None:
        self.name, self.seen, self.caught, self.plant = name, seen, caught, plant

    @contextmanager
    def planted(self) -> Iterator[None]:
        """The code with the mistake in it. Steps that were traced, and runs made, without it are forgotten."""
        remembered = (_TRACES.clear, _PROGRAMS.clear, played.cache_clear)
        with ExitStack() as stack:
            for forget in remembered:
                stack.callback(forget)
                forget()
            for part in self.plant:
                stack.enter_context(part.planted())
            yield
