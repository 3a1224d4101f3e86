"""Pages of documentation that are generated: one for each method, the list of methods, and that of the laws.

    python -m weft.experiment.pages docs/methods README.md docs/index.md docs/laws.md

writes the pages into a folder, and the lists between the ``methods`` and ``laws`` markers of further files.
"""

from __future__ import annotations

import inspect
import os
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from weft.core.errors import SettingError
from weft.core.laws import LAWS
from weft.core.registry import REGISTRY, Entry
from weft.core.select import Select
from weft.data.federated import FederatedData
from weft.experiment.explain import table
from weft.experiment.plugins import load_methods
from weft.experiment.run import Run
from weft.experiment.settings import DataSettings, RunSettings
from weft.experiment.sources import federated


def own() -> list[Entry]:
    """The methods of the package itself, without those of plug-ins."""
    load_methods()
    return [e for e in REGISTRY.values() if e.make.__module__.startswith("weft.methods.")]


def sections(doc: str) -> tuple[str, dict[str, str]]:
    """A method file's docstring as (first paragraph, heading -> text); `SettingError` if a section is not indented."""
    head, *rest = doc.split("\n\n", 1)
    found: dict[str, list[str]] = {}
    for line in rest[0].splitlines() if rest else []:
        if line and not line.startswith(" "):
            found[line.strip()] = []
        elif found:
            found[list(found)[-1]].append(line.strip())
        else:
            raise SettingError(f"docstring line {line.strip()!r} stands under no heading: start with Paper")
    return " ".join(head.split()), {k: " ".join(v).strip() for k, v in found.items()}


def page(entry: Entry, data: FederatedData) -> str:
    """The page of a method, in Markdown; its wire table is measured on one turn of the default model on `data`."""
    parts = sections(entry.doc)[1]
    run = Run.prepare(entry.make(), data, RunSettings())
    lines = [f"# {entry.title}", "", f"`{entry.name}`: {_plain(entry.summary.rstrip('.'))}.", ""]
    for heading, text in parts.items():
        lines += [f"## {heading}", "", _plain(text), ""]
    lines += ["## New clients", "", _plain(entry.newcomers), ""]
    lines += ["## Arguments", "", "| argument | default |", "|---|---|"]
    lines += [f"| `{name}` | `{_text(p.default)}` |" for name, p in entry.options.items()]
    lines += ["", _plain(" ".join((inspect.getdoc(entry.make) or "").split())), ""]
    model = f"`{run.settings.model}`, which has no batch norm"
    lines += ["## On the wire", "", f"For one client in one round ({model}, on {data.source.name}):", ""]
    lines += ["```text", *(line.strip() for line in table(run.probe.wire)), "```", ""]
    lines += ["## What the tests hold it to", "", *(f"- {fact}" for fact in facts(entry)), ""]
    return "\n".join(lines)


def facts(entry: Entry) -> list[str]:
    """What the registry says about a method, as sentences."""
    said = [f"Family: {entry.family}."]
    if entry.neutral:
        name, theirs, ours = entry.neutral
        said.append(f"Given the same batches,{_given(ours)} it trains as `{name}`{_given(theirs)}.")
    optimum = {
        True: "It reaches the optimum of quadratics with different minimisers.",
        False: "It does not reach the optimum of quadratics with different minimisers.",
        None: "It makes no promise about the optimum of a common model.",
    }
    said.append(optimum[entry.reaches_optimum])
    said.append("Clients may differ in architecture." if entry.mixed else "All clients share one architecture.")
    said += [f"All [laws](../laws.md) but {_listed(entry.apart)}." if entry.apart else "All [laws](../laws.md)."]
    said += [f"Not `{law}`: {_plain(why)}." for law, why in entry.apart.items()]
    said += [f"The plug-in `{plug}` is refused: {why}." for plug, why in entry.refused.items()]
    return said


def listing(folder: str) -> str:
    """The list of methods as a Markdown table by family, with links to the pages in `folder`."""
    lines = ["| method | family | what it is |", "|---|---|---|"]
    for e in sorted(own(), key=lambda e: (e.family, e.name)):
        said = _plain(e.summary.rstrip(".")).replace("|", r"\|")
        lines.append(f"| [`{e.name}`]({folder}/{e.name}.md) | {e.family} | {said} |")
    return "\n".join(lines)


def laws(folder: str) -> str:
    """The laws as a Markdown table, and under it for each the methods to which it does not apply, by reason."""
    lines = ["| law | what it says |", "|---|---|", *(f"| `{law}` | {said} |" for law, said in LAWS.items())]
    for law in LAWS:
        exempt: dict[str, list[str]] = {}
        for e in sorted(own(), key=lambda e: e.name):
            if law in e.apart:
                exempt.setdefault(e.apart[law], []).append(f"[`{e.name}`]({folder}/{e.name}.md)")
        lines += ["", f"### Not held to `{law}`", ""] if exempt else []
        lines += [f"- {', '.join(names)}: {_plain(why)}." for why, names in exempt.items()]
    return "\n".join(lines)


LISTS = {"methods": listing, "laws": laws}


def with_lists(text: str, folder: str) -> str:
    """A file's text with what is between its markers renewed; `SettingError` if it has none."""
    found = [name for name in LISTS if f"<!-- {name} -->" in text]
    if not found:
        raise SettingError("the file has no <!-- methods --> and no <!-- laws -->: put them where the list belongs")
    for name in found:
        before, _, rest = text.partition(f"<!-- {name} -->")
        _, closed, after = rest.partition(f"<!-- /{name} -->")
        if not closed:
            raise SettingError(f"the file has <!-- {name} --> that does not end: put <!-- /{name} --> after it")
        text = f"{before}<!-- {name} -->\n{LISTS[name](folder)}\n<!-- /{name} -->{after}"
    return text


def _listed(names: Iterable[str]) -> str:
    *most, last = (f"`{name}`" for name in names)
    return f"{', '.join(most)} and {last}" if most else last


def _given(args: Any) -> str:
    return f" with {', '.join(f'`{k}={_text(v)}`' for k, v in args.items())}" if args else ""


def _text(value: Any) -> str:
    return value.text if isinstance(value, Select) else str(value)


def _plain(text: str) -> str:
    """Text without what Markdown would read as emphasis or as a tag; letters with indices stay readable."""
    return re.sub(r"<(?=[\w/!?])|\*(?=\S)|(?<=\S)\*|(?<!\w)_|_(?!\w)", r"\\\g<0>", text)


def main(argv: Sequence[str] | None = None) -> None:
    """Write the pages and lists."""
    folder, *files = map(Path, sys.argv[1:] if argv is None else argv)
    data = federated(DataSettings())
    folder.mkdir(parents=True, exist_ok=True)
    for entry in own():
        (folder / f"{entry.name}.md").write_text(page(entry, data))
    for file in files:
        file.write_text(with_lists(file.read_text(), os.path.relpath(folder, file.parent)))


if __name__ == "__main__":
    main()
