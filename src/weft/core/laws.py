"""The laws that methods are held to, and why one of them does not apply to a method.

This is the only list of them: the tests ask it whom to test, and `weft explain` and the pages print it.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from weft.core.docstring import section

if TYPE_CHECKING:
    from weft.core.registry import Entry

LAWS = {
    "executors": "Batched, one by one, in chunks, traced, summed in parts and through bytes it gives the same numbers.",
    "actors": "So it does on the actors of a Ray cluster, each with a share of the clients.",
    "messages": "So it does over the messages of Flower.",
    "bits": "A rerun has the same bits, and so has a run that was stopped and goes on.",
    "inputs": "A round changes nothing that it was given, and nothing of clients that are not in it.",
    "padding": "Longer turns with nothing in them change nothing.",
    "names": "Clients with other numbers have the same outcome.",
    "lost": "A round in which a client's upload is lost is a round without that client.",
    "newcomers": "A client that had no turn answers, by what it receives and its own examples alone.",
    "moves": "Everything that a client keeps or the server holds moves.",
    "still": "If nobody learns, the model stands still.",
    "schedule": "Half of the rate by a schedule is half of the rate.",
    "off": "Its defaults do not switch off what makes it this method.",
    "neutral": "At its neutral setting it is the method that it extends.",
    "central": "With one client, at its neutral setting, it is plain training.",
    "quadratics": "On quadratics with different minimisers it reaches the optimum, or does not, as it promises.",
    "bytes": "Bytes that are counted are the bytes that are packed.",
    "statistics": "Running statistics travel with models only.",
    "home": "Nothing that is sent is what stays at home.",
    "reference": "Several rounds equal a version in numpy, written from the paper by somebody else.",
}

PLUGINS = ("blend",)
"""Plug-ins that a method may refuse, as an exemption too."""


def apart(entry: Entry) -> dict[str, str]:
    """Laws that do not apply to a method: name -> why."""
    found = {law: why for law, why in entry.exempt.items() if law in LAWS}
    if entry.mixed:
        found["names"] = "which architecture a client has follows from its number"
    if entry.off is None:
        found["off"] = "it has no setting that leaves less of it in training"
    if entry.neutral is None:
        said = _said(entry, "Neutral", "no neutral setting")
        found["neutral"] = said if said.startswith("no ") else f"it comes to no method of the registry: {said}"
    if entry.name != "fedavg" and (entry.neutral is None or entry.neutral[0] != "fedavg"):
        found["central"] = "no setting makes it FedAvg"
    if entry.reaches_optimum is None:
        found["quadratics"] = _said(entry, "Promise", "no promise")
    return {law: found[law] for law in LAWS if law in found}


def _said(entry: Entry, heading: str, none: str) -> str:
    """A section of its docstring, with other words for "None"; these alone if there is no such section."""
    return re.sub(r"^None\b", none, section(entry.doc, heading) or "None").rstrip(".")
