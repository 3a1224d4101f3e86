"""How a run travels to other processes: the method as its name and arguments, the rest as plain settings."""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from weft.core.errors import SettingError
from weft.core.here import Here
from weft.core.lift import taken_apart
from weft.core.method import Method
from weft.core.registry import find
from weft.data.federated import FederatedData
from weft.executors import Plan
from weft.experiment import assemble
from weft.experiment.plugins import load_methods
from weft.experiment.protection import protection, with_parts
from weft.experiment.settings import RunSettings, from_mapping, make, plain
from weft.experiment.settled import planned, settled


def shipped(method: Method, settings: RunSettings, model: Any, plan: Plan) -> dict[str, Any]:
    """A run as names and plain values.

    Raises:
        SettingError: the method or the model cannot be built from these in another process.
    """
    engine = f"executor = {settings.executor!r}"
    if model is not None:
        raise SettingError(
            f"{engine} builds the model in other processes, which know it by name only: name one of `weft models`, or "
            "use executor = 'batched'"
        )
    module = find(method.name).make.__module__
    if module == "__main__":
        raise SettingError(
            f"{engine} needs a method that other processes can import, and {method.name} stands in the main program: "
            "put it into a file of its own, and import it or name it with --plugin"
        )
    options = {name: plain(value) for name, value in method.args.items()}
    if not _plain(options) or not same(method, make(method.name, options)):
        raise SettingError(
            f"{engine} sends a method as its name and plain arguments, and this {method.name} is more than they make: "
            "use executor = 'batched', or register a method with these changes"
        )
    file = inspect.getfile(sys.modules[module]) if module.startswith("weft_plugin_") else ""
    return {
        "method": method.name,
        "options": options,
        "module": module,
        "file": file,
        "run": dict(vars(settings)),
        "chunk": plan.chunk,
        "workers": plan.workers,
    }


def delivered(ids: Tensor, where: torch.device, shipment: Mapping[str, Any], data: FederatedData) -> Here:
    """The clients `ids` of a run, on a device of this process."""
    load_methods((shipment["file"],) if shipment["file"] else ())
    if not shipment["file"]:
        importlib.import_module(shipment["module"])
    settings = from_mapping(RunSettings, shipment["run"])
    method = make(shipment["method"], shipment["options"])
    _, method = with_parts(method, data, settings, protection(method, data, settings))
    nets = assemble.networks(settings.model, data, settings.precision, where)
    everybody = assemble.placed(assemble.groups(method, nets, data.clients()), where)
    own = [group._replace(ids=group.ids[torch.isin(group.ids, ids)]) for group in everybody]
    examples = assemble.examples(data, where, assemble.DTYPES[settings.precision])
    here = settled(method, own, examples, data, settings)
    planned(here, data, settings, Plan(shipment["chunk"], shipment["workers"], "as chosen for all"))
    return here


def same(a: Method, b: Method) -> bool:
    """Whether two methods do the same, as far as their functions and what these close over can tell."""
    names = [f.name for f in fields(Method) if f.name not in ("name", "args")]
    (made, left), (other, right) = (taken_apart([getattr(m, name) for name in names]) for m in (a, b))
    return bool(made == other) and all(_alike(x, y) for x, y in zip(left, right, strict=True))


def _alike(a: Any, b: Any) -> bool:
    if isinstance(a, Method) and isinstance(b, Method):
        return same(a, b)
    return a is b or (type(a) is type(b) and not isinstance(a, Tensor) and bool(a == b))


def _plain(value: Any) -> bool:
    if isinstance(value, Mapping):
        return all(isinstance(k, str) and _plain(v) for k, v in value.items())
    if isinstance(value, list | tuple):
        return all(map(_plain, value))
    return value is None or isinstance(value, bool | int | float | str)
