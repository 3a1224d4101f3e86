"""Sections of the docstring of a method's file."""

from __future__ import annotations


def section(doc: str, heading: str) -> str:
    """The text under a heading, in one line; nothing if there is no such heading."""
    lines, found = iter(doc.splitlines()), []
    for line in lines:
        if line == heading:
            break
    for line in lines:
        if line and not line.startswith(" "):
            break
        found.append(line)
    return " ".join(" ".join(found).split())
