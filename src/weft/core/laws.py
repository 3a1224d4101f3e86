"""The laws that methods are held to: the only list of them, which `weft explain` and the pages print.

Whom a law does not apply to, and why, is in the registry (`Entry.apart`).
"""

from __future__ import annotations

LAWS = {
    "executors": "Batched, one by one, chunked, traced, compiled, in parts or through bytes it gives the same numbers.",
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
