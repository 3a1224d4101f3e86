"""Answers: what a view of a method says about examples of many clients."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.func import vmap
from torch.utils._pytree import tree_map

from weft.core.allocator import keep_freed_memory
from weft.core.clients import Array, Group, Look
from weft.core.here import Here
from weft.core.method import View
from weft.core.parallel import side_by_side
from weft.core.task import Data, Task


@dataclass(frozen=True)
class Answers:
    """One entry per judged example (for characters: per window), in the order of clients."""

    client: Array  # int64 [n]
    loss: Array  # float64 [n]
    right: Array  # float64 [n]: 1 or 0; for characters the share of positions
    y: Array  # int64 [n]; empty for characters
    guess: Array  # int64 [n]; empty for characters
    scores: Array | None  # float64 [n, classes], if they were asked for

    def of(self, ids: Array) -> Answers:
        """The answers on the examples of these clients."""
        return self.take(np.isin(self.client, ids))

    def write(self, here: slice, found: Answers) -> None:
        """Put these answers in their places; whose they are is known."""
        for name in ("loss", "right", "y", "guess", "scores"):
            whole, part = getattr(self, name), getattr(found, name)
            if part is not None and len(part):
                whole[here] = part

    def take(self, index: Array) -> Answers:
        """These entries: a mask, or places in the order that is wanted."""
        flat = len(self.y) == len(self.client)
        return Answers(
            self.client[index],
            self.loss[index],
            self.right[index],
            self.y[index] if flat else self.y,
            self.guess[index] if flat else self.guess,
            None if self.scores is None else self.scores[index],
        )


def answer(
    here: Here,
    view: View,
    look: Look,
    rows: Sequence[Array],
    ids: Array,
    past: Tensor,
    number: int,
    *,
    scores: bool = False,
    together: int = 64,
    workers: int = 1,
    block: int = 1024,
) -> Answers:
    """Ask a view about each client's examples.

    Args:
        here: the clients, after the round that is judged.
        view: how the method answers.
        look: what views get as the download.
        rows: for every client of `ids`, the row numbers of the examples to judge.
        ids: client numbers, int64, ascending.
        past: int64 [population]: how many turns each client has had.
        number: the round.
        scores: whether to keep the scores of all classes.
        together: clients judged as one program.
        workers: programs side by side.
        block: examples in one forward pass of a shared model; of personal ones 16 times as many, with padding.
    """
    keep_freed_memory()
    parts: list[Answers] = []
    for k, group in enumerate(here.groups):
        of_group = np.isin(ids, group.ids.numpy())
        own = [r for r, h in zip(rows, of_group, strict=True) if h]
        if not sum(len(r) for r in own):
            continue
        ask = _shared if view.shared else _personal
        parts += ask(here, k, view, look, own, ids[of_group], past, number, scores, together, workers, block)
    if not parts:
        none = np.zeros(0)
        return Answers(none.astype(int), none, none, none.astype(int), none.astype(int), None)
    joined = Answers(*(_joined([getattr(p, f) for p in parts]) for f in Answers.__dataclass_fields__))
    return joined.take(np.argsort(joined.client, kind="stable"))


_STACK = 2**24
"""Bytes of personal models that are judged as one program: more of them leave the caches, fewer have nothing to do."""


def _joined(arrays: list[Any]) -> Any:
    return None if arrays[0] is None else np.concatenate(arrays)


def _shared(
    here: Here, k: int, view: View, look: Look, rows: list[Array], ids: Array, past: Tensor, number: int, scores: bool,
    together: int, workers: int, block: int,
) -> list[Answers]:  # fmt: skip
    """One model for all: one pass over everybody's examples, told apart by client afterwards."""
    group, examples = here.groups[k], here.examples
    down, _ = look(torch.from_numpy(ids))
    fills = together == 1  # a core, so that no more than one client's step is a program
    if fills:
        block, down = min(block, 256), tree_map(_by_pixel, down)
    predict = view.predict(group.net, Task(down, (), None))  # type: ignore[arg-type]
    flat, owner = np.concatenate(rows), np.repeat(ids, [len(r) for r in rows])
    said = _blank(owner, examples.y.ndim == 1, group.net.classes if scores else 0)

    def judge(start: int) -> None:
        here = slice(start, start + block)
        part = torch.from_numpy(flat[here]).to(examples.y.device)
        with torch.no_grad():
            logits = predict(examples.look(part))
        said.write(here, _judged(group, logits, examples.label(part), owner[here], scores))

    side_by_side(judge, range(0, len(flat), block), workers)
    return [said]


def _blank(client: Array, flat: bool, classes: int) -> Answers:
    """Answers that are yet to be written; those of one block after the other would lie between the blocks' examples."""
    n = len(client)
    y, guess = (np.empty(n if flat else 0, np.int64) for _ in range(2))
    return Answers(client, np.empty(n), np.empty(n), y, guess, np.empty((n, classes)) if flat and classes else None)


def _by_pixel(weight: Tensor) -> Tensor:
    """Kernels with the channels of a pixel side by side, as convolutions on a CPU are quickest; these pass it on."""
    turn = weight.ndim == 4 and weight.device.type == "cpu" and weight.dtype in (torch.float32, torch.bfloat16)
    return weight.contiguous(memory_format=torch.channels_last) if turn else weight


def _personal(
    here: Here, k: int, view: View, look: Look, rows: list[Array], ids: Array, past: Tensor, number: int, scores: bool,
    together: int, workers: int, block: int,
) -> list[Answers]:  # fmt: skip
    """A model for each: clients with like numbers of examples are judged as one program."""
    group, store, examples = here.groups[k], here.kept[k], here.examples
    sizes, device = np.array([len(r) for r in rows]), examples.y.device
    turns = past[torch.from_numpy(ids)].numpy()
    members = torch.searchsorted(group.ids, torch.from_numpy(ids))
    fresh = (turns == 0) & (view.newcomer is not None)
    chunks = []
    for kind in (fresh, ~fresh):
        there = np.flatnonzero(kind & (sizes > 0))
        there = there[store.places(members[there]).argsort().numpy()]
        most = min(together, _STACK // max(1, store.row_bytes), -(-len(there) // workers))
        chunks += _chunks(there, sizes, max(1, most), 16 * block)
    phases = {name: phase for name, phase in here.method.phases.items() if name == "adapt"}

    def judge(chunk: Array) -> Answers:
        judged, most = torch.from_numpy(ids[chunk]), int(sizes[chunk].max())
        live = torch.from_numpy(np.flatnonzero(np.arange(most) < sizes[chunk][:, None])).to(device)
        own = torch.from_numpy(np.concatenate([rows[c] for c in chunk])).to(device)
        asked = own.new_zeros(len(chunk) * most).index_copy_(0, live, own).reshape(len(chunk), most)
        turn = here.draw(number, judged, phases, past[judged]) if view.data else None
        down, apart = look(judged)
        predict = view.of(int(turns[chunk[0]]))

        def one(down: Any, mine: Any, turn: Any, x: Tensor) -> Tensor:
            data = None if turn is None else Data(examples, turn)
            return predict(group.net, Task(down, mine, data))(x)  # type: ignore[arg-type]

        with torch.no_grad(), store.reading(members[chunk]) as (kept, stacked):
            mine = tree_map(lambda x: x.to(device), kept.method)
            dims = (0 if apart else None, 0 if stacked else None, 0 if view.data else None, 0)
            logits = vmap(one, in_dims=dims)(down, mine, turn, examples.look(asked))
            logits = logits.flatten(0, 1).index_select(0, live)
        return _judged(group, logits, examples.label(own), np.repeat(ids[chunk], sizes[chunk]), scores)

    return side_by_side(judge, chunks, workers)


def _chunks(lying: Array, sizes: Array, most: int, rows: int) -> list[Array]:
    """Clients that are judged together: at most so many, with so many rows of examples, little of that padding.

    Neighbours are, in the order in which their states are `lying`, since states of neighbours are not copied; but they
    go by size where that makes far fewer programs.
    """
    near, alike = (_cut(order, sizes, most, rows) for order in (lying, lying[np.argsort(-sizes[lying], kind="stable")]))
    return near if len(near) <= 1.5 * len(alike) else alike


def _cut(order: Array, sizes: Array, most: int, rows: int) -> list[Array]:
    chunks = []
    while len(order):
        own = sizes[order[:most]]
        real, padded = own.cumsum(), np.maximum.accumulate(own) * np.arange(1, len(own) + 1)
        fits = (padded <= rows) & (padded - real <= np.maximum(real // 4, rows // 64))
        count = len(own) if fits.all() else max(1, int(fits.argmin()))
        chunks.append(order[:count])
        order = order[count:]
    return chunks


def _judged(group: Group, logits: Tensor, y: Tensor, owner: Array, scores: bool) -> Answers:
    loss = group.net.criterion(logits, y).double()
    guess = logits.argmax(-1)
    if y.ndim == 1:
        right = (guess == y).double()
        kept, said = y.cpu().numpy(), guess.cpu().numpy()
    else:
        judged = y >= 0
        right = ((guess == y) & judged).sum(1).double() / judged.sum(1).clamp(min=1)
        kept = said = np.zeros(0, dtype=np.int64)
    probable = logits.softmax(-1).double().cpu().numpy() if scores and y.ndim == 1 else None
    return Answers(owner, loss.cpu().numpy(), right.cpu().numpy(), kept, said, probable)
