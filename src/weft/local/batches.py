"""Drawing the batches of a cohort: row numbers only, the same under every executor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from weft.core.method import Phase
from weft.core.stream import stream, streams
from weft.core.task import Turn

Indices = np.ndarray[tuple[int], np.dtype[np.int64]]


def draw_turns(
    rows: Sequence[Indices],
    ids: Sequence[int],
    phases: Mapping[str, Phase],
    past: Sequence[int],
    *,
    seed: int,
    number: int,
    epochs: int | Sequence[int],
    batch_size: int,
    rate: float = 1.0,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Turn:
    """The turns of the clients `ids` in round `number`, stacked.

    Args:
        rows: per client of the cohort, the row numbers of its training examples.
        ids: the clients' numbers; each has streams of its own.
        phases: the method's phases.
        past: how many turns each client has had.
        seed: the run's seed of data order.
        number: the round.
        epochs: the run's local epochs, or one number per client.
        batch_size: examples in a batch; 0 makes all examples one batch.
        rate: the schedule's factor on the learning rate.
        dtype: of counts and of `rate`.
        device: where the tensors go.

    Returns:
        Turn: every entry with the client axis first, padded with -1.
    """
    each = [epochs] * len(ids) if isinstance(epochs, int) else list(epochs)
    rngs = streams(seed, [*(f"batches {name}" for name in phases), "key"], number, each=ids)
    steps = {
        name: _padded(
            [
                _batches(phase, _part(phase, r, seed, k), p, e, batch_size, next(rngs))
                for r, k, p, e in zip(rows, ids, past, each, strict=True)
            ]
        )
        for name, phase in phases.items()
    }
    keys = [int(rng.integers(2**32)) for rng in rngs]
    whole = _padded([r[None] for r in rows])[:, 0]
    turn = Turn(
        rows=torch.from_numpy(whole),
        size=torch.tensor([len(r) for r in rows], dtype=dtype),
        steps={name: torch.from_numpy(s) for name, s in steps.items()},
        key=torch.tensor(keys),
        rate=torch.full((len(ids),), rate, dtype=dtype),
        past=torch.tensor(list(past), dtype=torch.int64),
    )
    return turn if str(device) == "cpu" else torch.utils._pytree.tree_map(lambda x: x.to(device), turn)


def _part(phase: Phase, rows: Indices, seed: int, client: int) -> Indices:
    """The rows of the phase's stretch: the same in all rounds, and disjoint for stretches that are."""
    if phase.part == (0.0, 1.0):
        return rows
    low, high = (round(edge * len(rows)) for edge in phase.part)
    return stream(seed, "part", client).permutation(rows)[low:high]


def _batches(
    phase: Phase, rows: Indices, past: int, epochs: int, batch_size: int, rng: np.random.Generator
) -> np.ndarray[tuple[int, int], np.dtype[np.int64]]:
    """[steps, batch] row numbers of one client's phase, -1 = padding."""
    if past < phase.first or (phase.last is not None and past > phase.last) or not len(rows):
        return np.full((0, 1), -1)
    drawn = rows
    if phase.share < 1:
        drawn = rng.permutation(rows)[: max(1, int(phase.share * len(rows)))]
    size = min(batch_size or len(drawn), len(drawn))
    per_epoch = -(-len(drawn) // size)
    count = epochs if phase.epochs is None else phase.epochs
    if phase.steps is not None:
        count = -(-phase.steps // per_epoch)
    order = rng.permutation(drawn)
    if count == 1 and per_epoch * size == len(drawn):
        return order.reshape(per_epoch, size)[: phase.steps]
    padded = np.full((count, per_epoch * size), -1)
    for e in range(count):
        padded[e, : len(drawn)] = order
        order = rng.permutation(drawn) if phase.reshuffle else order
    return padded.reshape(count * per_epoch, size)[: phase.steps]


def _padded(
    parts: Sequence[np.ndarray[tuple[int, int], np.dtype[np.int64]]],
) -> np.ndarray[tuple[int, int, int], np.dtype[np.int64]]:
    """Stack [steps, batch] arrays of different shapes, filling with -1."""
    shape = (len(parts), max(p.shape[0] for p in parts), max(p.shape[1] for p in parts))
    if all(p.shape == shape[1:] for p in parts):
        return np.stack(parts)
    out = np.full(shape, -1, dtype=np.int64)
    for i, p in enumerate(parts):
        out[i, : p.shape[0], : p.shape[1]] = p
    return out
