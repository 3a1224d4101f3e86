"""Checkpoints: tensors as safetensors, the rest as JSON, written whole or not at all; the last two are kept."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from torch.utils._pytree import tree_map

from weft.core.errors import SettingError
from weft.core.round import Federation
from weft.core.turn import Mine
from weft.experiment.streamed import Blocks, stream

KEPT = 2


def write(folder: Path, number: int, federation: Federation, extra: dict[str, Any]) -> None:
    """Write the state after round `number`; `extra` is plain data, such as totals so far."""
    tensors: dict[str, Tensor | Blocks] = {}
    state = {
        "server": federation.server,
        "then": dict(federation.then),
        "kept": federation.clients.saved(),
        "turns": federation.turns,
    }
    shape = described(state, tensors)
    home = folder / "checkpoint"
    temporary = home / ".part"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    digest = stream(temporary / "state.safetensors", tensors)
    note = {"round": number, "state": shape, "extra": extra, "sha256": digest}
    (temporary / "state.json").write_text(json.dumps(note))
    place = home / f"round-{number:06d}"
    shutil.rmtree(place, ignore_errors=True)
    os.replace(temporary, place)
    for old in _all(folder)[:-KEPT]:
        shutil.rmtree(old)


def latest(folder: Path) -> Path | None:
    """The newest checkpoint, or None."""
    found = _all(folder)
    return found[-1] if found else None


def restore(place: Path, federation: Federation) -> tuple[int, Federation, dict[str, Any]]:
    """Put a checkpoint's state into a federation that was begun with the same settings.

    Returns:
        (round, federation, what was given as `extra`).

    Raises:
        SettingError: the checkpoint is damaged.
    """
    try:
        note = json.loads((place / "state.json").read_text())
        with (place / "state.safetensors").open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != note["sha256"]:
                raise ValueError("its tensors are not those that were written")
        tensors = load_file(place / "state.safetensors")  # mapped: only what is looked at is read
        shape, number, extra = note["state"], int(note["round"]), note["extra"]
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise SettingError(
            f"the checkpoint {place} is damaged ({error}): delete that folder to go on from the one before"
        ) from None
    firsts = [Mine(federation.method.client(g.net, g.net.init(0)), {}) for g in federation.groups]
    likes = [{"members": federation.turns, "states": first} for first in firsts]
    like = {"server": federation.server, "then": {}, "kept": likes, "turns": federation.turns}
    state = rebuilt(shape, tensors, like)
    federation.clients.restore(state["kept"])
    server, then, turns = tree_map(torch.clone, (state["server"], state["then"], state["turns"]))  # the file may go
    return number, replace(federation, server=server, then=then, turns=turns), extra


def _all(folder: Path) -> list[Path]:
    return sorted(p for p in (folder / "checkpoint").glob("round-*") if p.is_dir())


def described(state: Any, tensors: dict[str, Tensor | Blocks]) -> Any:
    """The structure of `state` as JSON, its tensors put aside under numbers."""
    if isinstance(state, dict):
        return {"dict": {k: described(v, tensors) for k, v in state.items()}}
    if isinstance(state, list | tuple):
        return {"list": [described(v, tensors) for v in state]}
    if isinstance(state, Tensor) or hasattr(state, "blocks"):
        name = str(len(tensors))
        tensors[name] = state
        return name
    return None


def rebuilt(shape: Any, tensors: dict[str, Tensor], like: Any) -> Any:
    """The state again; `like` says which tuples are NamedTuples of which kind."""
    if shape is None:
        return None
    if isinstance(shape, str):
        value = tensors[shape]
        return value.to(like.device) if isinstance(like, Tensor) else value
    if "dict" in shape:
        known = like if isinstance(like, dict) else {}
        return {k: rebuilt(v, tensors, known.get(k)) for k, v in shape["dict"].items()}
    items = shape["list"]
    likes = list(like) if isinstance(like, list | tuple) and len(like) == len(items) else [None] * len(items)
    parts = [rebuilt(v, tensors, x) for v, x in zip(items, likes, strict=True)]
    if isinstance(like, tuple) and hasattr(like, "_fields"):
        return type(like)(*parts)
    return parts if isinstance(like, list) else tuple(parts)


def to(device: torch.device, state: Any) -> Any:
    """A structure of tensors on a device."""
    return tree_map(lambda x: x.to(device) if isinstance(x, Tensor) else x, state)
