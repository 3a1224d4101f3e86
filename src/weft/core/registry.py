"""The registry: names -> methods. Command line, settings files, docs pages and shipment are derived from it."""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from weft.core.docstring import section
from weft.core.errors import SettingError
from weft.core.laws import LAWS, PLUGINS
from weft.core.method import Method


@dataclass(frozen=True)
class Entry:
    """What is known about a method beside its code."""

    name: str
    make: Callable[..., Method]  # the function of the method file
    title: str  # as the paper writes it
    family: str
    neutral: (
        tuple[str, Mapping[str, Any], Mapping[str, Any]] | None
    )  # (method, its arguments, ours): then the two are equal
    reaches_optimum: bool | None  # on quadratics with different minimisers; None: not a single global model
    mixed: bool  # clients may have different architectures
    off: Mapping[str, Any] | None  # arguments that leave less of it, so that the defaults must differ from them
    exempt: Mapping[str, str]  # law, or plug-in -> why it does not apply
    about: str = ""  # one line, where a file has several methods

    @property
    def doc(self) -> str:
        """The docstring of the method's file, which holds paper, algorithm, defaults and deviations."""
        return inspect.getdoc(inspect.getmodule(inspect.unwrap(self.make))) or ""

    @property
    def summary(self) -> str:
        """What it is, in one line."""
        first = " ".join(self.doc.split("\n\n")[0].split())
        return self.about or first.partition(": ")[2] or first

    @property
    def apart(self) -> dict[str, str]:
        """Laws that do not apply to it: name -> why."""
        found = {law: why for law, why in self.exempt.items() if law in LAWS}
        if self.mixed:
            found["names"] = "which architecture a client has follows from its number"
        if self.off is None:
            found["off"] = "it has no setting that leaves less of it in training"
        if self.neutral is None:
            said = self._said("Neutral", "no neutral setting")
            found["neutral"] = said if said.startswith("no ") else f"it comes to no method of the registry: {said}"
        if self.name != "fedavg" and (self.neutral is None or self.neutral[0] != "fedavg"):
            found["central"] = "no setting makes it FedAvg"
        if self.reaches_optimum is None:
            found["quadratics"] = self._said("Promise", "no promise")
        return {law: found[law] for law in LAWS if law in found}

    def _said(self, heading: str, none: str) -> str:
        """A section of its docstring, with other words for "None"; these alone if there is no such section."""
        return re.sub(r"^None\b", none, section(self.doc, heading) or "None").rstrip(".")

    @property
    def refused(self) -> dict[str, str]:
        """Plug-ins that it refuses: name -> why."""
        return {name: why for name, why in self.exempt.items() if name in PLUGINS}

    @property
    def newcomers(self) -> str:
        """How a client answers that had no turn: what the file says under Deviations, unless all answer alike."""
        if all(view.shared for view in self.make().views.values()):
            return "A client that had no turn answers as all others do, with the common model."
        found = re.search(r"[^.;]*\bhad no turn\b[^.;]*", section(self.doc, "Deviations"))
        said = found[0].strip() if found else ""
        return said and f"{said[0].upper()}{said[1:]}."

    @property
    def options(self) -> dict[str, inspect.Parameter]:
        """The arguments of the method, by name."""
        return dict(inspect.signature(inspect.unwrap(self.make)).parameters)


REGISTRY: dict[str, Entry] = {}


def method(
    title: str,
    family: str,
    *,
    name: str | None = None,
    neutral: tuple[str, Mapping[str, Any], Mapping[str, Any]] | None = None,
    reaches_optimum: bool | None = None,
    mixed: bool = False,
    off: Mapping[str, Any] | None = None,
    exempt: Mapping[str, str] | None = None,
    about: str = "",
) -> Callable[[Callable[..., Method]], Callable[..., Method]]:
    """Register a method function under its own name (underscores become hyphens).

    A keyword that is not an argument of the function but a field of a dataclass among its defaults is folded into that
    default: ``fedprox(lr=0.1)`` is ``fedprox(opt=replace(SGD(...), lr=0.1))``.

    Raises:
        SettingError: an exemption is from no law.
    """
    strange = set(exempt or {}) - set(LAWS) - set(PLUGINS)
    if strange:
        raise SettingError(f"exempt = {', '.join(strange)} of {title} is no law: there are {', '.join(LAWS)}")
    less = off or (neutral[2] if neutral else None) or None

    def register(function: Callable[..., Method]) -> Callable[..., Method]:
        called = name or function.__name__.replace("_", "-")
        signature = inspect.signature(function)

        def make(*args: Any, **options: Any) -> Method:
            bound = signature.bind_partial(*args, **_folded(called, signature, options))
            bound.apply_defaults()
            return replace(function(*bound.args, **bound.kwargs), name=called, args=dict(bound.arguments))

        make.__wrapped__ = function  # type: ignore[attr-defined]
        make.__doc__, make.__name__, make.__module__ = (function.__doc__, function.__name__, function.__module__)
        REGISTRY[called] = Entry(
            called, make, title, family, neutral, reaches_optimum, mixed, less, dict(exempt or {}), about
        )
        return make

    return register


def _folded(name: str, signature: inspect.Signature, options: Mapping[str, Any]) -> dict[str, Any]:
    known = {k: v for k, v in options.items() if k in signature.parameters}
    for key, value in options.items():
        if key in known:
            continue
        for p in signature.parameters.values():
            part = known.get(p.name, p.default)
            if dataclasses.is_dataclass(part) and key in {f.name for f in dataclasses.fields(part)}:
                known[p.name] = replace(part, **{key: value})  # type: ignore[type-var]
                break
        else:
            fields = [
                f.name
                for p in signature.parameters.values()
                if dataclasses.is_dataclass(p.default)
                for f in dataclasses.fields(p.default)
            ]
            takes = [*(n for n in signature.parameters), *fields]
            raise SettingError(f"{name} has no option {key!r}: it takes {', '.join(takes)}")
    return known


def find(name: str) -> Entry:
    """The entry of a method; `SettingError` with near matches if there is none."""
    if name in REGISTRY:
        return REGISTRY[name]
    near = difflib.get_close_matches(name, REGISTRY, n=3)
    hint = f"did you mean {' or '.join(near)}?" if near else f"known are {', '.join(sorted(REGISTRY))}"
    raise SettingError(f"there is no method {name!r}: {hint}")
