"""From the words of a command to settings and methods."""

from __future__ import annotations

import argparse
import dataclasses
import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from weft.core.errors import SettingError


def prepared(args: argparse.Namespace) -> tuple[Any, Any, dict[str, Any]]:
    """(data settings, run settings, method section of the configuration file)."""
    import torch

    from weft.experiment.settings import DataSettings, RunSettings, from_mapping, load_yaml

    threads = getattr(args, "threads", None)
    if threads is not None:
        if threads < 1:
            raise SettingError(f"threads = {threads} computes nothing: use 1 or more")
        torch.set_num_threads(threads)
    config = load_yaml(Path(args.config)) if getattr(args, "config", None) else {}
    method = config.get("method", {})
    data = {k: v for k, v in config.get("data", {}).items() if k != "manifest"}
    return (
        from_mapping(DataSettings, data | given(args, DataSettings)),
        from_mapping(RunSettings, config.get("run", {}) | given(args, RunSettings)),
        {"name": method} if isinstance(method, str) else dict(method),
    )


def made(name: str, options: Mapping[str, Any]) -> Any:
    """A method, with an error that also knows the settings of runs."""
    from weft.experiment.settings import DataSettings, RunSettings, make

    known = takes(name)
    settings = [f.name for kind in (DataSettings, RunSettings) for f in dataclasses.fields(kind)]
    for option in options:
        if option not in known and option != "opt":
            if option in settings:
                word = option.replace("_", "-")
                raise SettingError(f"{option} is a setting of the run, not of {name}: give it once, as --{word}")
            near = difflib.get_close_matches(option, [*known, *settings], n=1)
            hint = f"did you mean --{near[0].replace('_', '-')}?" if near else f"it takes {', '.join(known) or 'none'}"
            raise SettingError(f"{name} has no option --{option.replace('_', '-')}: {hint}")
    return make(name, options)


def takes(name: str) -> list[str]:
    """The options of a method and of its optimiser."""
    from weft.core.registry import find
    from weft.local import SGD, Adam

    options = find(name).options
    optimiser = [f.name for kind in (SGD, Adam) for f in dataclasses.fields(kind)] if "opt" in options else []
    own = [o for o in options if o != "opt"]
    return list(dict.fromkeys([*own, *optimiser, *(["optimizer"] if optimiser else [])]))


def given(args: argparse.Namespace, kind: type[Any]) -> dict[str, Any]:
    """The fields of a settings class that were said."""
    return {f.name: getattr(args, f.name) for f in dataclasses.fields(kind) if hasattr(args, f.name)}
