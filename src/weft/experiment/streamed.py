"""Tensors into a safetensors file, block by block, so that those on disk are never in memory as a whole."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


class Blocks(Protocol):
    """A tensor that comes in parts."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Of all of it."""

    @property
    def dtype(self) -> torch.dtype:
        """Of its numbers."""

    def blocks(self) -> Iterable[Tensor]:
        """Its parts along the first axis."""


def stream(path: Path, tensors: Mapping[str, Tensor | Blocks], note: Mapping[str, str] | None = None) -> str:
    """Write a file that any reader of safetensors takes, with its metadata `note`; the SHA-256 of what was written.

    The format is a JSON header after its length (8 bytes, little-endian), then the numbers without gaps. Wide ones come
    first, so that all are aligned.
    """
    order = sorted(tensors, key=lambda name: -tensors[name].dtype.itemsize)
    header: dict[str, Any] = {"__metadata__": dict(note)} if note else {}
    end = 0
    for name in order:
        shape, dtype = tuple(tensors[name].shape), tensors[name].dtype
        start, end = end, end + math.prod(shape) * dtype.itemsize
        header[name] = {"dtype": _NAMES[dtype], "shape": shape, "data_offsets": (start, end)}
    said = json.dumps(header).encode()
    said += b" " * (-len(said) % 8)
    digest = hashlib.sha256()
    with path.open("wb") as file:
        for part in (len(said).to_bytes(8, "little"), said):
            file.write(part)
            digest.update(part)
        for name in order:
            value = tensors[name]
            for block in [value] if isinstance(value, Tensor) else value.blocks():
                octets = block.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
                file.write(octets.data)
                digest.update(octets.data)
    return digest.hexdigest()
