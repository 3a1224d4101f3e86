"""Trees: flat dictionaries of tensors, the only thing that is ever sent or kept."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

T = TypeVar("T")

Tree = dict[str, Tensor]
"""Dotted path -> tensor. Never changed in place."""


def each(f: Callable[..., Tensor], *trees: Tree) -> Tree:
    """Apply `f` entry by entry; the first tree says which entries there are."""
    return {k: f(*(t[k] for t in trees)) for k in trees[0]}


def add(a: Tree, b: Tree) -> Tree:
    """A + b."""
    return each(torch.add, a, b)


def sub(a: Tree, b: Tree) -> Tree:
    """A - b."""
    return each(torch.sub, a, b)


def scale(a: Tree, s: Tensor | float) -> Tree:
    """S * a, for a scalar `s`."""
    return each(lambda x: x * s, a)


def zeros(a: Tree) -> Tree:
    """A tree of zeros with the shapes of `a`."""
    return each(torch.zeros_like, a)


def dot(a: Tree, b: Tree) -> Tensor:
    """Inner product over all entries of `a`; a scalar."""
    return torch.stack([(a[k] * b[k]).sum() for k in a]).sum()


def sq_norm(a: Tree) -> Tensor:
    """Squared Euclidean norm over all entries; a scalar."""
    return dot(a, a)


def where(condition: Tensor, a: Tree, b: Tree) -> Tree:
    """`a` where the scalar `condition` holds, else `b`: how a masked step leaves everything as it was."""
    return each(lambda x, y: torch.where(condition, x, y), a, b)


def mix(a: Tree, b: Tree, w: Tensor | float) -> Tree:
    """W * a + (1 - w) * b."""
    return each(lambda x, y: w * x + (1 - w) * y, a, b)


def delta(new: Tree, old: Tree) -> Tree:
    """THE sign convention: an update points where the model moved, and is applied with `add`."""
    return sub(new, old)


def taken(stack: T, places: Tensor) -> T:
    """The rows of these places (int64 [k], on the host) of a structure of stacks; if that is all of it, no copy."""
    size = next((len(x) for x in tree_leaves(stack)), 0)
    if len(places) == size and bool((places == torch.arange(size)).all()):
        return stack
    rows: T = tree_map(lambda x: x[places.to(x.device)], stack)
    return rows
