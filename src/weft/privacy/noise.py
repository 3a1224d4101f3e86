"""Gaussian noise: from the streams of the run, so that a run can be repeated, or from the operating system."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from weft.core.stream import code, stream
from weft.core.tree import Tree

Source = Literal["stream", "system"]
"""stream: whoever knows the seed of the run can compute the noise; system: nobody can, nor repeat the run."""


def noised(tree: Tree, std: float, source: Source, seed: int, *ids: int) -> Tree:
    """The tree with independent noise of this standard deviation, for the server: `ids` name the round and the tree."""

    def one(name: str, x: Tensor) -> Tensor:
        rng = stream(seed, "privacy noise", *ids, code(name)) if source == "stream" else np.random.default_rng()
        return x + torch.from_numpy(rng.standard_normal(tuple(x.shape))).to(x.device, x.dtype) * std

    return {k: one(k, x) for k, x in tree.items()} if std else tree


def drawn(key: Tensor, like: Tensor, purpose: str, source: Source) -> Tensor:
    """Standard normal numbers in the shape of `like`, for one client: `key` is its randomness in this round.

    From the key, they are the same alone and under ``vmap``.
    """
    out: Tensor = _Drawn.apply(key, like, code(purpose), source)  # type: ignore[no-untyped-call]
    return out


def _numbers(key: int, shape: tuple[int, ...], purpose: int, source: Source) -> np.ndarray[Any, np.dtype[np.float64]]:
    seed = np.random.SeedSequence([key, purpose]) if source == "stream" else None
    rng = np.random.Generator(np.random.Philox(seed))
    return rng.standard_normal(shape)


class _Drawn(torch.autograd.Function):
    """Draws on the host, which is no operation that ``vmap`` knows; its rule draws for each client from its own key."""

    @staticmethod
    def forward(key: Tensor, like: Tensor, purpose: int, source: Source) -> Tensor:
        return torch.from_numpy(_numbers(int(key), tuple(like.shape), purpose, source)).to(like.device, like.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.mark_non_differentiable(output)

    @staticmethod
    def vmap(info: Any, dims: Any, key: Tensor, like: Tensor, purpose: int, source: Source) -> tuple[Tensor, int]:
        keys = key.movedim(dims[0], 0).tolist() if dims[0] is not None else [int(key)] * info.batch_size
        one = like.select(dims[1], 0) if dims[1] is not None else like
        made = [_numbers(k, tuple(one.shape), purpose, source) for k in keys]
        return torch.from_numpy(np.stack(made)).to(one.device, one.dtype), 0
