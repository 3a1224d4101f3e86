"""Local training: minimise a loss over a tree on the batches of a phase."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.func import grad
from torch.utils._pytree import tree_flatten, tree_unflatten

from weft.core.net import Fit, Net
from weft.core.select import Select
from weft.core.task import Batch, Data
from weft.core.tree import Tree
from weft.local.optimisers import Optimiser
from weft.local.scan import scan

Params = TypeVar("Params")


class Descent(NamedTuple):
    """The outcome of local training."""

    params: Any
    steps: Tensor  # how many real steps were made, a scalar


def descend(
    net: Net,
    params: Params,
    data: Data,
    loss: Callable[..., Fit],
    opt: Optimiser,
    *,
    given: tuple[Any, ...] = (),
    only: Select | None = None,
    phase: str = "local",
) -> Descent:
    """Minimise `loss` over `params` by `opt`, one step for each batch of a phase, from a fresh optimiser state.

    Args:
        net: whose roles say which entries are buffers; those are carried, not learnt.
        params: a tree, or a NamedTuple of trees and tensors, such as two models that are stepped together.
        data: the client's data.
        loss: (params, batch, *given) -> `Fit`. It must take every tensor that it uses as an argument.
        opt: a local optimiser; the schedule's factor on its learning rate comes with `data`.
        given: structures of tensors handed to the loss, held constant.
        only: entries that learn; the others stand still. By default all that are not buffers. Entries of the role
            `aside` do learn, and are buffers to the terms of a method: those of a plug-in.
        phase: whose batches.

    Returns:
        Descent: the new params in the structure of the old ones, and the number of real steps.
    """
    leaves, spec = tree_flatten(params)
    names = _names(params)
    known = [net.roles.get(n, frozenset()) for n in names]
    moving = tuple(
        i
        for i, (n, roles) in enumerate(zip(names, known, strict=True))
        if ("buffer" not in roles or "aside" in roles) and (only is None or only.test(n, roles))
    )

    def step(carry: Any, batch: Batch, rate: Tensor, *given: Any) -> Any:
        leaves, state, steps = carry

        def objective(learning: Tree) -> tuple[Tensor, Any]:
            joined = list(leaves)
            for i in moving:
                joined[i] = learning[str(i)]
            fit = loss(tree_unflatten(joined, spec), batch, *given)
            return fit.value, fit.buffers

        old = {str(i): leaves[i] for i in moving}
        grads, buffers = grad(objective, has_aux=True)(old)
        change, state = opt.update(grads, state, old, rate)
        new = list(leaves)
        for i in moving:
            new[i] = old[str(i)] + change[str(i)]
        new = tree_flatten(_carried(tree_unflatten(new, spec), buffers))[0]
        return new, state, steps + 1

    none = torch.zeros((), dtype=data.rate.dtype, device=data.rate.device)
    first = (leaves, opt.init({str(i): leaves[i] for i in moving}), none)
    end, _, steps = scan(step, first, data, given=(data.rate, *given), phase=phase)
    return Descent(tree_unflatten(end, spec), steps)


def _names(params: Any) -> list[str]:
    """For every leaf the key under which it stands in its tree; '' outside trees."""
    if isinstance(params, dict):
        return list(params)
    if isinstance(params, tuple):
        return [n for part in params for n in _names(part)]
    return [""]


def _carried(params: Any, buffers: Any) -> Any:
    """`params` with the changed buffers put in; NamedTuples part by part."""
    if isinstance(params, dict):
        return {**params, **buffers}
    if isinstance(params, tuple) and buffers:
        return type(params)(*(_carried(p, b) for p, b in zip(params, buffers, strict=True)))
    return params
