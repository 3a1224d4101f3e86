"""From data settings to federated data."""

from __future__ import annotations

import inspect
from dataclasses import replace
from pathlib import Path
from typing import Any

from weft.data import federate as federating
from weft.data import load as loading
from weft.data import manifest as manifests
from weft.data.domains import with_domains
from weft.data.federated import FederatedData
from weft.data.partition import PARTITIONERS
from weft.data.source import Source
from weft.data.streams import with_streams
from weft.experiment.settings import DataSettings


def federated(settings: DataSettings) -> FederatedData:
    """Load the source and divide it among clients; the recipe says where the source is from."""
    data = federating.federate(_source(settings), **recipe(settings))
    if settings.stream:
        data = with_streams(data, settings.stream, settings.data_seed)
    more = {"domain": list(settings.domain)} if settings.domain else {}
    said = {"data": settings.data, **more, **data.manifest["recipe"]}
    return replace(data, manifest={**data.manifest, "recipe": said})


def _source(settings: DataSettings) -> Source:
    source = loading.load(settings.data)
    return with_domains(source, settings.domain, settings.data_seed) if settings.domain else source


def recipe(settings: DataSettings) -> dict[str, Any]:
    """The arguments of `weft.data.federate.federate` that these settings stand for."""
    named = {**vars(settings), "seed": settings.data_seed}
    takes = inspect.signature(federating.federate).parameters
    return {k: v for k, v in named.items() if k in takes}


def make_partition(settings: DataSettings, folder: Path) -> str:
    """Divide a source and write ``manifest.json`` and ``partition.npz`` into a folder."""
    data = federated(settings)
    manifests.write(data, folder)
    return f"{folder}: {data.clients()} clients, hash {data.manifest['hash']}"


def verify_partition(settings: DataSettings, folder: Path) -> str:
    """Check a partition's folder against its source; `SettingError` says what is wrong."""
    data = manifests.read(_source(settings), folder)
    return f"{folder} is whole: {data.clients()} clients, hash {data.manifest['hash']}"


def listing() -> list[tuple[tuple[str, ...], list[tuple[str, ...]]]]:
    """The tables of `weft data`: data sets, and partitions."""
    sets: list[tuple[str, ...]] = [
        (
            s.name,
            s.kind,
            str(s.train or ""),
            str(s.test or ""),
            s.clients,
            s.about if s.available else f"{s.about} (WEFT_DATA)",
        )
        for s in loading.catalogue()
    ]
    ways: list[tuple[str, ...]] = [(name, (way.__doc__ or "").splitlines()[0]) for name, way in PARTITIONERS.items()]
    ways.append(("natural", "As the data come: one client for each person, hospital or role."))
    return [
        (("data", "kind", "train", "test", "natural clients", "what it is"), sets),
        (("partition", "what it does"), ways),
    ]
