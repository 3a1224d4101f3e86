"""A place: a process of a cluster that holds some of the clients of runs."""

from __future__ import annotations

import platform
import warnings
from collections.abc import Callable, Mapping
from functools import partial, reduce
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from weft.core.clients import Exam, Marks, Message, Part
from weft.core.here import Here, turn_of
from weft.core.reduction import merged
from weft.executors.plan import cores, memory
from weft.version import __version__

Build = Callable[..., Here]
"""(client ids, device, ...) -> those clients of a run. A function that another process can import by its name."""


def packed(thing: Any) -> Any:
    """Tensors as arrays, which Ray lays into memory that all processes of a machine see."""
    return tree_map(lambda x: x.detach().cpu().numpy() if isinstance(x, Tensor) else x, thing)


def opened(thing: Any, device: torch.device | str = "cpu", *, own: bool = False) -> Any:
    """Arrays as tensors; they must not be written to, unless `own` makes copies that outlive Ray's memory."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return tree_map(lambda x: _tensor(x, device, own) if hasattr(x, "__array_interface__") else x, thing)


def _tensor(array: Any, device: torch.device | str, own: bool) -> Tensor:
    return torch.from_numpy(array.copy() if own else array).to(device)


def versions() -> dict[str, str]:
    """What must be the same on all machines."""
    return {"weft": __version__, "torch": torch.__version__, "Python": platform.python_version()}


class Place:
    """What an actor is. Its methods take and give arrays; a run is told by its name."""

    def __init__(self, cpus: float, gpus: float) -> None:
        """`cpus`, `gpus`: what this actor may use."""
        self._device = torch.device("cuda" if gpus else "cpu")
        self._share = min(1.0, gpus) if gpus else min(1.0, cpus / cores())
        self._here: dict[str, Here] = {}
        torch.set_num_threads(max(1, int(cpus)))

    def about(self) -> dict[str, Any]:
        """Versions, and the bytes of memory for clients."""
        return {**versions(), "memory": int(memory(self._device) * self._share)}

    def hold(self, run: str, build: Build, ids: Any, saved: Any, *what: Any) -> None:
        """Have these clients of a run, as they were when `saved`."""
        self._here[run] = build(opened(ids), self._device, *what)
        self._here[run].restore(opened(saved))

    def drop(self, run: str) -> None:
        """Forget a run."""
        self._here.pop(run, None)

    def hear(self, run: str, number: int, exchange: int, ids: Any, past: Any, down: Any) -> Part:
        """Let clients take their turns."""
        here = self._here[run]
        message = Message(number, exchange, opened(ids), opened(past), opened(down, self._device))
        join = partial(merged, turn_of(here.method, message), here.groups[0].net)
        return packed(reduce(lambda whole, part: join([whole, part]), here.hear(message)))  # type: ignore[no-any-return]

    def keep(self, run: str, ids: Any) -> list[tuple[Any, Any]]:
        """End the round; for each group (client ids, what they keep)."""
        here, good = self._here[run], opened(ids)
        here.keep(good)
        own = [group.ids[torch.isin(group.ids, good)] for group in here.groups]
        return [(packed(some), packed(here.states(some))) for some in own if len(some)]

    def judge(
        self, run: str, number: int, split: str, view: str, full: bool, past: Any, ids: Any, down: Any, stacked: bool
    ) -> Mapping[str, Marks]:
        """Judge a view on the examples of these clients."""
        asked, given = opened(ids), opened(down, self._device)

        def look(some: Tensor) -> tuple[Any, bool]:
            if not stacked:
                return given, False
            at = torch.searchsorted(asked, some)
            return tree_map(lambda x: x[at.to(x.device)], given), True

        return self._here[run].judge(Exam(number, split, view, full, opened(past), look, asked))
