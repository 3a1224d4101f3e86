"""Weft: federated learning among clients that are not alike.

A method is a value, data is a value, and a run of one on the other gives a result::

    import weft

    data = weft.federate(weft.load("mnist-10k"), partition="dirichlet", alpha=0.1, clients=20)
    result = weft.run(weft.fedala(lr=0.05), data, rounds=20)

Every method of `weft methods` is an attribute of this module, with hyphens as underscores.
"""

from __future__ import annotations

import importlib
from typing import Any

from weft.version import __version__ as __version__

_HOMES = {
    "federate": "weft.data.federate",
    "load": "weft.data.load",
    "reopen": "weft.experiment.api",
    "run": "weft.experiment.api",
    "with_domains": "weft.data.domains",
    "with_streams": "weft.data.streams",
    "Net": "weft.core.net",
    "SettingError": "weft.core.errors",
    "Result": "weft.experiment.result",
    "Select": "weft.core.select",
    "everything": "weft.core.select",
    "role": "weft.core.select",
    "tune": "weft.core.method",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    if not name.startswith("_"):
        from weft.core.registry import REGISTRY
        from weft.experiment.plugins import load_methods

        load_methods()
        if name.replace("_", "-") in REGISTRY:
            return REGISTRY[name.replace("_", "-")].make
    raise AttributeError(f"module 'weft' has no attribute {name!r}")
