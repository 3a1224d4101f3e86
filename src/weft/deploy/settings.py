"""What a node is told by its owner: where the server is, who it is, and which examples it has."""

from __future__ import annotations

import importlib
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from weft.core.errors import SettingError
from weft.data.federate import federate
from weft.data.federated import FederatedData, Rows
from weft.data.load import load
from weft.data.source import Source
from weft.experiment.settings import DataSettings, from_mapping
from weft.experiment.sources import federated

OWN = "own"
"""The partition of a node whose examples are all of its one client."""


@dataclass(frozen=True)
class NodeSettings:
    """A node's settings file; paths in it are relative to the file."""

    name: str
    superlink: str  # host:port
    certificate: Path  # of the authority that signed the server's certificate
    key: Path  # the node's private key
    state: Path  # folder for what its clients keep
    clients: list[int]  # the clients that live here, ascending
    data: dict[str, Any]  # settings of the data; partition `own`: all of it is this node's
    device: str = "auto"
    poll: float = 0.3  # seconds between two questions for a message
    plugins: list[str] = field(default_factory=list)  # files that register methods

    @staticmethod
    def read(path: Path | str) -> NodeSettings:
        """From a YAML file.

        Raises:
            SettingError: it cannot be read, or a setting is missing or unknown.
        """
        path = Path(path)
        try:
            found = yaml.safe_load(path.read_text())
        except OSError as error:
            raise SettingError(f"cannot read the node's settings from {path}: {error.strerror}") from None
        except yaml.YAMLError as error:
            raise SettingError(f"{path} is not YAML: {' '.join(str(error).split())}") from None
        known = {f.name for f in fields(NodeSettings)}
        needed = known - {"device", "poll", "plugins"}
        if not isinstance(found, dict) or not needed <= set(found) <= known:
            wrong = sorted(set(found) - known) if isinstance(found, dict) else []
            missing = sorted(needed - set(found)) if isinstance(found, dict) else sorted(needed)
            what = f"does not know {', '.join(wrong)}" if wrong else f"lacks {', '.join(missing)}"
            raise SettingError(f"{path} {what}: a node's settings are {', '.join(sorted(known))}")
        made = NodeSettings(**found)
        if not made.clients or sorted(set(made.clients)) != made.clients or made.clients[0] < 0:
            raise SettingError(f"clients = {made.clients} of {path} are none: give ascending numbers, such as [0]")
        places = {n: (path.parent / getattr(made, n)).resolve() for n in ("certificate", "key", "state")}
        return replace(made, **places)

    def federated(self, population: int) -> FederatedData:
        """The node's examples as part of a federation of so many clients.

        Data by name are divided as everywhere, and the node's clients have their share; with the partition `own`, all
        examples are of the node's one client.

        Raises:
            SettingError: the data cannot be had, or the clients are not in the federation.
        """
        if self.clients[-1] >= population:
            raise SettingError(
                f"node {self.name} is client {self.clients[-1]}, and the federation has the clients 0 to "
                f"{population - 1}: give it one of these numbers"
            )
        if self.data.get("partition") != OWN:
            data = federated(from_mapping(DataSettings, self.data))
            if data.clients() != population:
                raise SettingError(
                    f"node {self.name} divides its data among {data.clients()} clients, and the federation has "
                    f"{population}: give both the same number"
                )
            return data
        if len(self.clients) != 1:
            raise SettingError(
                f"clients = {self.clients} of node {self.name}: with partition own, all examples are of one client"
            )
        chosen = from_mapping(DataSettings, {k: v for k, v in self.data.items() if k != "partition"})
        how = {k: getattr(chosen, k) for k in ("validation", "min_examples", "protocol")}
        one = federate(source(chosen.data), partition="iid", clients=1, seed=chosen.data_seed, **how)
        return alone(one, self.clients[0], population)


def source(name: str) -> Source:
    """Examples by name or path as everywhere, or from ``module:function``, which returns a `Source`."""
    module, colon, function = name.partition(":")
    if not colon or module in ("npz", "parquet", "hub") or Path(name).exists():
        return load(name)
    try:
        made = getattr(importlib.import_module(module), function)()
    except (ImportError, AttributeError) as error:
        raise SettingError(f"data = {name!r} cannot be had ({error}): use a name, a path, or module:function") from None
    if not isinstance(made, Source):
        raise SettingError(f"data = {name!r} returns {type(made).__name__}: it must return a weft.data Source")
    return made


def alone(one: FederatedData, client: int, population: int) -> FederatedData:
    """The data of a single client as those of client `client` among so many others, who have none here."""

    def placed(rows: Rows) -> Rows:
        none = np.zeros(0, dtype=np.int64)
        return Rows.of([rows.client(0) if k == client else none for k in range(population)])

    train, validation, test = (placed(rows) for rows in one.splits().values())
    others = np.array([k for k in range(population) if k != client], dtype=np.int64)
    return replace(one, train=train, validation=validation, test=test, unseen=others)
