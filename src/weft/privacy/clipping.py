"""Clipping: what a client sends is scaled down to a largest norm, taken over everything that it sends at once."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from weft.core.tree import Tree, each, sq_norm


def norm(trees: Mapping[str, Tree]) -> Tensor:
    """Euclidean norm over all entries of all trees; a scalar, infinite where an entry is not finite."""
    whole = torch.stack([sq_norm(tree) for tree in trees.values() if tree]).sum().sqrt()
    return torch.where(whole.isfinite(), whole, torch.inf)


def clipped(trees: Mapping[str, Tree], largest: Tensor | float) -> tuple[dict[str, Tree], Tensor]:
    """The trees, scaled by min(1, largest / norm) as a whole; and 1 where the norm is at most `largest`, else 0.

    What is not finite becomes zero, as if nothing had been sent: anything else would show that it was not.
    """
    size = norm(trees)
    factor = torch.where(size > largest, largest / size, torch.ones_like(size))
    finite = size.isfinite()
    scaled = {name: each(lambda x: torch.where(finite, x * factor, 0.0), tree) for name, tree in trees.items()}
    return scaled, (size <= largest).to(size.dtype)
