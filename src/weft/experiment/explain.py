"""What there is to know about a method: its file's docstring, its arguments, and what it puts on the wire."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from weft.core.laws import LAWS
from weft.core.method import Method
from weft.core.registry import find
from weft.experiment.run import Run
from weft.experiment.settings import DataSettings, RunSettings, plain
from weft.experiment.sources import federated


def explain(method: Method, data: DataSettings, settings: RunSettings) -> str:
    """A page of plain text; the wire table is measured on one client's turn with this data and model."""
    entry = find(method.name)
    lines = [entry.doc.strip(), "", "Arguments"]
    lines += [f"    {name} = {_shown(plain(value))}" for name, value in method.args.items()]
    if entry.neutral:
        name, theirs, ours = entry.neutral
        lines += ["", f"With {_shown(ours) or 'its defaults'} it is {name} {_shown(theirs)}".rstrip() + "."]
    lines += ["", "Laws that the tests hold it to", f"    {', '.join(law for law in LAWS if law not in entry.apart)}"]
    lines += ["", "Laws that do not apply", *(f"    {law}: {why}" for law, why in entry.apart.items())]
    lines += [] if entry.apart else ["    none"]
    for plug, why in entry.refused.items():
        lines += ["", f"The plug-in {plug} is refused: {why}."]
    run = Run.prepare(method, federated(data), settings)
    lines += ["", f"On the wire, for one client in one round ({settings.model} on {data.data})", *table(run.probe.wire)]
    return "\n".join(lines)


def table(wire: list[dict[str, Any]]) -> list[str]:
    """The wire table as lines of text."""
    if not wire:
        return ["    nothing"]
    return [f"    {r['direction']:<5}{r['channel']:<12}{r['tensors']:>4} tensors{r['bytes']:>12,} bytes" for r in wire]


def _shown(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{k}={_shown(plain(v))}" for k, v in value.items())
    return str(value)
