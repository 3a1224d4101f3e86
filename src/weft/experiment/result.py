"""The result of a run: what was measured, and the models themselves."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from weft.core.errors import SettingError
from weft.core.here import Here
from weft.core.method import Round, shown
from weft.core.round import Federation
from weft.core.task import Data, Task
from weft.data import manifest
from weft.data.federated import FederatedData
from weft.experiment import checkpoint
from weft.experiment.folder import RunFolder
from weft.experiment.summary import dumps

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True, eq=False)
class Result:
    """What a run gave."""

    method: str
    summary: dict[str, Any]  # as summary.json
    measured: Callable[[], pa.Table]  # reads `history`
    federation: Federation
    here: Here  # the clients, in this process
    data: FederatedData
    settings: dict[str, Any]  # as settings.yaml
    totals: dict[str, float]

    @cached_property
    def history(self) -> pa.Table:
        """All that was measured, in long format: round, split, view, group, client, metric, value.

        Read when it is first asked for; without a run folder, figures over clients only (client -1).
        """
        return self.measured()

    @property
    def accuracy(self) -> float:
        """The headline: test accuracy over clients, weighted by examples, after the last round."""
        return float(self.summary["headline"]["value"])

    def save(self, path: Path | str) -> Path:
        """Write a run folder, which `weft.reopen` and `weft report` read.

        Raises:
            SettingError: the folder holds something, or cannot be written.
        """
        folder, number = RunFolder.start(Path(path), self.settings, resume=False), int(self.summary["rounds"])
        folder.write("manifest.json", manifest.text(self.data))
        folder.write_metrics(number, [self.history])
        checkpoint.write(folder.path, number, self.federation, self.totals)
        folder.write("summary.json", dumps(self.summary))
        return folder.path

    def predictor(self, client: int | None = None, view: str | None = None) -> Callable[[Array], Array]:
        """A function from raw examples [n, ...] (as the source holds them) to class probabilities [n, classes].

        Args:
            client: whose model; may be left out for a view that all share.
            view: which view; by default the headline's.

        Raises:
            SettingError: there is no such client or view.
        """
        method, name = self.federation.method, view or self.summary["headline"]["view"]
        if name not in method.views:
            raise SettingError(f"view = {name!r} is none of {self.method}'s: use {' or '.join(method.views)}")
        chosen = method.views[name]
        population = len(self.federation.turns)
        if client is None and not chosen.shared:
            raise SettingError(f"the view {name!r} differs between clients: give client=0 to {population - 1}")
        if client is not None and not 0 <= client < population:
            raise SettingError(f"client = {client} is not in this run: use 0 to {population - 1}")
        ids = torch.tensor([client or 0])
        net = next(group.net for group in self.federation.groups if bool(torch.isin(ids, group.ids)))
        number = int(self.summary["rounds"])
        down, stacked = shown(method, self.federation.server, Round(number, ids, population, self.federation.net))
        if stacked:
            down = tree_map(lambda x: x[0], down)
        mine = self.federation.clients.state(int(ids))
        phases = {n: p for n, p in method.phases.items() if n == "adapt"}
        turn = tree_map(lambda x: x[0], self.here.draw(number, ids, phases, self.federation.turns[ids]))
        predict = chosen.of(int(self.federation.turns[ids]))(net, Task(down, mine, Data(self.here.examples, turn)))

        def answer(x: Array) -> Array:
            there = self.here.examples
            raw = dataclasses.replace(there, x=torch.from_numpy(np.asarray(x)).to(there.x.device))
            with torch.no_grad():
                found: Tensor = predict(raw.look(torch.arange(len(x)))).softmax(-1)
            return found.cpu().numpy()

        return answer


def load(path: Path | str) -> dict[str, Any]:
    """The summary of a run folder."""
    try:
        found = json.loads((Path(path) / "summary.json").read_text())
    except (OSError, ValueError):
        raise SettingError(f"{path} holds no finished run: give a folder that `weft run --out` has written") from None
    assert isinstance(found, dict)
    return found
