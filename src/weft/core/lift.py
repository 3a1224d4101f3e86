"""Functions taken apart into what they close over, and built again with other leaves.

A method is pure functions, so all that tells its runs apart is what these close over: a learning rate in an optimiser,
the weight of a penalty. Seen as trees, functions can be compared by value, and numbers in them replaced by tensors.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from functools import partial
from typing import Any, NamedTuple

from torch import Tensor


class Unlike(ValueError):
    """Things differ in more than numbers; the message is the name of the part that does."""


class _Inside(NamedTuple):
    """What a thing is made of."""

    kind: Any  # hashable, and equal for things of the same make
    names: Sequence[str]
    parts: Sequence[Any]
    build: Callable[[Sequence[Any]], Any]  # other parts -> another thing of this make


def _inside(thing: Any) -> _Inside | None:
    """The parts of a thing; None for a leaf."""
    match thing:
        case types.FunctionType():
            return _inside_function(thing)
        case types.MethodType():
            bound = (thing.__func__, thing.__self__)
            return _Inside(types.MethodType, ("function", "self"), bound, lambda new: types.MethodType(*new))
        case partial():
            fixed = (thing.func, thing.args, thing.keywords)
            words = ("function", "arguments", "options")
            return _Inside(partial, words, fixed, lambda new: partial(new[0], *new[1], **new[2]))
        case tuple() | list():
            build = getattr(type(thing), "_make", type(thing))  # a NamedTuple takes its fields one by one
            return _Inside((type(thing), len(thing)), tuple(map(str, range(len(thing)))), thing, build)
        case Mapping():
            keys = tuple(thing)
            return _Inside(
                (Mapping, keys),
                tuple(map(str, keys)),
                tuple(thing.values()),
                lambda new: dict(zip(keys, new, strict=True)),
            )
        case _ if is_dataclass(thing) and not isinstance(thing, type) and type(thing).__eq__ is not object.__eq__:
            names = tuple(f.name for f in fields(thing))
            return _Inside(
                type(thing), names, [getattr(thing, n) for n in names], partial(_unchecked, type(thing), names)
            )
    return None


def _inside_function(f: types.FunctionType) -> _Inside:
    cells, defaults, options = f.__closure__ or (), f.__defaults__ or (), f.__kwdefaults__ or {}

    def build(new: Sequence[Any]) -> Any:
        held, rest = new[: len(cells)], new[len(cells) :]
        closure = tuple(map(types.CellType, held))
        made = types.FunctionType(f.__code__, f.__globals__, f.__name__, tuple(rest[: len(defaults)]), closure)
        made.__kwdefaults__ = dict(zip(options, rest[len(defaults) :], strict=True))
        return made

    taken = f.__code__.co_varnames[: f.__code__.co_argcount]
    names = (*f.__code__.co_freevars, *taken[len(taken) - len(defaults) :], *options)
    parts = (*(c.cell_contents for c in cells), *defaults, *options.values())
    return _Inside((f.__code__, len(defaults), tuple(options)), names, parts, build)


def _unchecked(kind: type[Any], names: Sequence[str], values: Sequence[Any]) -> Any:
    """A dataclass without its checks, which a number that has become a tensor could not pass."""
    made = object.__new__(kind)
    for name, value in zip(names, values, strict=True):
        object.__setattr__(made, name, value)
    return made


def taken_apart(thing: Any) -> tuple[Any, list[Any]]:
    """(make, leaves): things of equal makes differ in their leaves only; a make is hashable."""
    leaves: list[Any] = []
    return _make(thing, leaves), leaves


def _make(thing: Any, leaves: list[Any]) -> Any:
    """What a thing is made of; its leaves are added to these."""
    inside = _inside(thing)
    if inside is None:
        leaves.append(thing)
        return None
    return (inside.kind, *(_make(part, leaves) for part in inside.parts))


def rebuilt(thing: Any, leaves: Iterator[Any]) -> Any:
    """The thing with other leaves, in the order of `taken_apart`; a part that keeps its leaves stays as it is."""
    inside = _inside(thing)
    if inside is None:
        return next(leaves)
    new = [rebuilt(part, leaves) for part in inside.parts]
    same = all(a is b for a, b in zip(new, inside.parts, strict=True))
    return thing if same else inside.build(new)


class Number(NamedTuple):
    """A leaf in which things of one make differ."""

    place: int  # among the leaves
    name: str  # such as opt.lr
    values: tuple[float, ...]  # one of each thing


def numbers(things: Sequence[Any]) -> list[Number]:
    """Where things differ, which must be in numbers only.

    Raises:
        Unlike: they differ in their code, their structure or in something else.
    """
    leaves = enumerate(_side_by_side(things, ""))
    return [Number(place, name, values) for place, (name, values) in leaves if not _equal(name, values)]


def _side_by_side(things: Sequence[Any], name: str) -> Iterator[tuple[str, tuple[Any, ...]]]:
    """(name, values) of the leaves of things of one make."""
    insides = [inside for inside in map(_inside, things) if inside is not None]
    if not insides:
        yield name, tuple(things)
        return
    if len(insides) < len(things) or len({inside.kind for inside in insides}) > 1:
        raise Unlike(name)
    parts = zip(*(inside.parts for inside in insides), strict=True)
    for part, values in zip(insides[0].names, parts, strict=True):
        yield from _side_by_side(values, f"{name}.{part}" if name else part)


def _equal(name: str, values: Sequence[Any]) -> bool:
    """Whether leaves are all equal; if not, they must be numbers."""
    first = values[0]
    if all(value is first for value in values):
        return True
    if all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
        return all(value == first for value in values)
    plain = not isinstance(first, Tensor) and type(first).__hash__ is not None
    if plain and all(type(value) is type(first) and bool(value == first) for value in values):
        return True
    raise Unlike(name)
