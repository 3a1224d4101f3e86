"""The step loop as one operator with its own rule for many clients.

`scan` folds a step over the batches of a phase. Alone, it is a plain loop. Under ``vmap`` its rule gets the physical
stacked tensors, and runs the loop outside the functorch layers over a stacked step that is traced if that pays.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from weft.compiled.operations import Uncompiled
from weft.core.errors import SettingError
from weft.core.lift import rebuilt, taken_apart
from weft.core.stream import code, fold
from weft.core.task import Batch, Data, Examples
from weft.local.noted import note, noting
from weft.local.stack import Stack, Step, batch_of

Carry = TypeVar("Carry")


def scan(
    step: Callable[..., Carry],
    carry: Carry,
    data: Data,
    *,
    given: tuple[Any, ...] = (),
    phase: str | tuple[str, ...] = "local",
    until: Callable[[Carry], Tensor] | None = None,
) -> Carry:
    """Fold ``carry = step(carry, batch, *given)`` over the batches of a phase; padding steps change nothing.

    Args:
        step: a function that takes every tensor it uses as an argument, but for scalars that stand where a number may
            stand, such as the learning rate of an optimiser; it returns a carry of the same structure.
        carry: any structure of tensors (trees, NamedTuples).
        data: the client's data, which holds the batches.
        given: structures of tensors that stay constant over the loop, such as the received model.
        phase: whose batches; several phases with as many steps hand the step a tuple of batches, one of each.
        until: carry -> bool scalar, True once no further step can change the carry. It saves work and changes nothing:
            the loop may end when it holds for all clients.

    Raises:
        SettingError: the step closes over a tensor with axes, so it could not be traced once for all rounds; or the
            phases differ in their numbers of steps.
    """
    turn = data.turn
    if isinstance(phase, str):
        name, rows = phase, turn.steps[phase]
    else:
        step, name, rows = _abreast(step, phase, turn.steps)
    step, until, identity, scalars = _lifted(step, until)
    flat, spec = tree_flatten((carry, (*given, *scalars)))
    one = Step(step, until, identity, spec)
    out = _Scan.apply(one, data.examples, rows, fold(turn.key, code(name)), *flat)  # type: ignore[no-untyped-call]
    result: Carry = tree_unflatten(list(out), tree_flatten(carry)[1])
    return result


def _lifted(
    step: Callable[..., Any], until: Callable[..., Any] | None
) -> tuple[Callable[..., Any], Callable[..., Any] | None, Any, list[Tensor]]:
    """Scalar tensors that a step or its end closes over become their last given arguments.

    Returns:
        (step, (carry, *given) -> end, what makes two steps the same: code and all that they close over, by value, the
        scalars).
    """
    own = (step, until)
    make, leaves = taken_apart(own)
    places = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
    if any(leaves[i].ndim for i in places):
        raise SettingError(
            "a loss closes over a tensor, so it cannot be traced once or shipped: pass the tensor through `given`"
        )

    def parted(given: tuple[Any, ...]) -> tuple[Any, tuple[Any, ...]]:
        """((step, until) with the scalars that stand last in `given`, the others)."""
        if not places:
            return own, given
        put = dict(zip(places, given[-len(places) :], strict=True))
        return rebuilt(own, (put.get(i, leaf) for i, leaf in enumerate(leaves))), given[: -len(places)]

    def stepping(carry: Any, batch: Any, *given: Any) -> Any:
        (step, _), given = parted(given)
        return step(carry, batch, *given)

    def ending(carry: Any, *given: Any) -> Any:
        (_, until), _ = parted(given)
        return until(carry)

    identity = (make, tuple(Tensor if i in places else leaf for i, leaf in enumerate(leaves)))
    return stepping, ending if until else None, identity, [leaves[i] for i in places]


def _abreast(
    step: Callable[..., Any], phases: tuple[str, ...], steps: Mapping[str, Tensor]
) -> tuple[Callable[..., Any], str, Tensor]:
    """Several phases as one, whose batches lie side by side: (step that parts them again, name, row numbers)."""
    if len({steps[p].shape[0] for p in phases}) > 1:
        counts = ", ".join(f"{p!r} has {steps[p].shape[0]}" for p in phases)
        raise SettingError(
            f"phases that are scanned together must have as many steps, but {counts}: give them equal epochs"
        )
    widths = [steps[p].shape[1] for p in phases]

    def parted(carry: Any, batch: Batch, *given: Any) -> Any:
        x, y, live = (torch.split(part, widths) for part in batch[:3])
        keys = [fold(batch.key, i) for i in range(len(widths))]
        parts = tuple(Batch(*p, batch.number) for p in zip(x, y, live, keys, strict=True))
        return step(carry, parts, *given)

    return parted, " ".join(phases), torch.cat([steps[p] for p in phases], 1)


class _Scan(torch.autograd.Function):
    """Not differentiable: gradients are taken inside the step."""

    @staticmethod
    def forward(step: Step, examples: Examples, rows: Tensor, key: Tensor, *flat: Tensor) -> tuple[Tensor, ...]:
        if (loops := noting.get()) is not None:
            return tuple(note(loops, step, examples, rows, key, flat))
        state = list(flat)
        for t in range(rows.shape[0]):
            if step.until and bool(step.ended(state)):
                break
            state[: step.width] = step(state, batch_of(examples, rows[t], key, t))
        return tuple(s.clone() for s in state[: step.width])

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    @staticmethod
    def vmap(
        info: Any,
        in_dims: tuple[int | None, ...],
        step: Step,
        examples: Examples,
        rows: Tensor,
        key: Tensor,
        *flat: Tensor,
    ) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
        if noting.get() is not None:
            raise Uncompiled("steps of several models of one client")
        rows, key = (
            x.movedim(d, 0) if d is not None else x.expand(info.batch_size, *x.shape)
            for x, d in zip((rows, key), in_dims[2:4], strict=True)
        )
        dims: list[int | None] = []
        state = []
        for i, (x, d) in enumerate(zip(flat, in_dims[4:], strict=True)):
            if i < step.width:  # what changes is stacked and a copy of our own; what is given to all may stay shared
                x = (x.expand(info.batch_size, *x.shape) if d is None else x.movedim(d, 0)).contiguous()
                state.append(x.clone() if any(x.data_ptr() == f.data_ptr() for f in flat) else x)
                dims.append(0)
            else:
                state.append((x if d is None else x.movedim(d, 0)).contiguous())
                dims.append(None if d is None else 0)
        return tuple(Stack(step, dims, examples, rows, key, state).folded()), (0,) * step.width
