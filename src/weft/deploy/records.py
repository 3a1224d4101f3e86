"""Flower's records from our values, and back: one record per channel, of exactly the bytes that it packs to."""

from __future__ import annotations

import json
from collections import namedtuple
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from safetensors import SafetensorError
from safetensors.torch import load

from weft.core.channel import Codec
from weft.core.method import Method
from weft.core.net import Net
from weft.core.tree import Tree
from weft.core.turn import encoded
from weft.wire import pack, unpack, weigh


class Corrupt(ValueError):
    """An upload is not what its channel is declared to carry; the message says on which channel and how."""


def note(records: RecordDict, name: str, values: Mapping[str, Any]) -> None:
    """Put plain values into a record of their own."""
    records[name] = ConfigRecord({"json": json.dumps(values)})


def noted(records: RecordDict, name: str) -> dict[str, Any]:
    """The plain values of that record."""
    found = json.loads(str(records[name]["json"]))
    assert isinstance(found, dict)
    return found


def put_download(records: RecordDict, down: Any) -> None:
    """One record ``down.CHANNEL`` for each channel; ``down`` has the name of the type and the order of the entries."""
    trees = down._asdict()
    for channel, tree in trees.items():
        records[f"down.{channel}"] = ArrayRecord({"tree": _array(pack(tree))})
    order = {channel: list(tree) for channel, tree in trees.items()}
    note(records, "down", {"type": type(down).__name__, "channels": order})


def download(records: RecordDict, types: Mapping[str, Any]) -> Any:
    """What the server sent: a tuple whose fields are the channels; of its own type, if that is among `types`."""
    told, trees = noted(records, "down"), {}
    order = told["channels"]
    for channel, names in order.items():
        found = load(_bytes(records, f"down.{channel}", "tree"))
        trees[channel] = {name: found[name] for name in names}
    kind: Any = types.get(told["type"])
    known = getattr(kind, "_fields", None) == tuple(order)
    return kind(**trees) if known else namedtuple("Down", order)(**trees)


def put_uploads(records: RecordDict, turn: Method, net: Net, ids: Sequence[int], up: Any) -> None:
    """One record ``up.CHANNEL`` for each channel, with an entry for each client: what its codec packs.

    Running statistics, which pass codecs by, are an entry of their own.
    """
    for channel, stack in up._asdict().items():
        codec = turn.up[channel].encode
        entries = {}
        for i, client in enumerate(ids):
            tree = {k: v[i] for k, v in stack.items()}
            coded, carried = encoded(net, tree) if codec else (tree, {})
            entries[str(client)] = _array(codec.pack(coded) if codec else pack(coded))
            if carried:
                entries[f"{client}.carried"] = _array(pack(carried))
        records[f"up.{channel}"] = ArrayRecord(entries)


def uploads(records: RecordDict, turn: Method, net: Net, ids: Sequence[int], like: Any) -> Any:
    """The uploads of these clients, stacked in their order; `like`: one upload with the right shapes.

    Raises:
        Corrupt: there are other channels or clients than declared, or bytes that are not a packed upload.
    """
    found = {name for name in records if name.startswith("up.")}
    wanted = {f"up.{channel}" for channel in like._fields}
    if found != wanted:
        raise Corrupt(f"it sent {sorted(found)}, and {sorted(wanted)} are declared")
    stacks = {}
    for channel, tree in like._asdict().items():
        codec = turn.up[channel].encode
        coded, carried = encoded(net, tree) if codec else (tree, {})
        each = []
        for client in ids:
            one = _unpacked(channel, _bytes(records, f"up.{channel}", str(client)), coded, codec)
            if carried:
                one |= _unpacked(channel, _bytes(records, f"up.{channel}", f"{client}.carried"), carried, None)
            each.append({name: one[name] for name in tree})
        stacks[channel] = {name: torch.stack([one[name] for one in each]) for name in tree}
    return type(like)(**stacks)


def put_each(records: RecordDict, name: str, each: Mapping[int, bytes]) -> None:
    """Put bytes for, or of, each of some clients into one record."""
    records[name] = ArrayRecord({str(client): _array(data) for client, data in each.items()})


def each_of(records: RecordDict, name: str, ids: Sequence[int]) -> dict[int, bytes]:
    """The bytes of these clients in that record.

    Raises:
        Corrupt: one is missing.
    """
    return {client: _bytes(records, name, str(client)) for client in ids}


def size(records: RecordDict, prefix: str) -> int:
    """Bytes of the records whose names begin so."""
    return sum(
        len(array.data)
        for name, one in records.array_records.items()
        if name.startswith(prefix)
        for array in one.values()
    )


def _unpacked(channel: str, data: bytes, like: Tree, codec: Codec | None) -> Tree:
    most = 2 * weigh(like) + 1024  # no codec packs to more than the numbers themselves, by far
    if len(data) > most:
        raise Corrupt(f"it sent {len(data):,} bytes on channel {channel!r}, where {weigh(like):,} are usual")
    try:
        return dict(codec.unpack(data, like) if codec else unpack(data, like))
    except (ValueError, IndexError, RuntimeError, KeyError, SafetensorError) as error:
        text = " ".join(str(error).split())[:200]
        raise Corrupt(f"what it sent on channel {channel!r} does not unpack: {text}") from None


def _array(data: bytes) -> Array:
    return Array("uint8", (len(data),), "weft", data)


def _bytes(records: RecordDict, record: str, entry: str) -> bytes:
    try:
        return bytes(records.array_records[record][entry].data)
    except KeyError:
        raise Corrupt(f"it sent nothing for {entry!r} in {record!r}") from None
