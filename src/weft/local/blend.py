"""Blending of a received model into a client's own, entry by entry, with weights that the client learns.

Zhang et al.: "FedALA: Adaptive Local Aggregation for Personalized Federated Learning", AAAI 2023, Section 3. Any method
may start local training from such a blend: it declares the phases of `ala_phases`, and keeps its last model and the
weights.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.func import grad_and_value

from weft.core.errors import SettingError
from weft.core.method import Method, Phase
from weft.core.net import Net
from weft.core.registry import REGISTRY
from weft.core.select import Select, role
from weft.core.task import Batch, Data, Task
from weft.core.tree import Tree, add, each, sub
from weft.local.optimisers import Clamped
from weft.local.plug import Plug, plugged
from weft.local.scan import scan


def blend(received: Tree, own: Tree, weights: Tree) -> Tree:
    """Own + W (received - own) where there are weights, received elsewhere; exact at W = 0 and at W = 1."""
    return {k: weights[k] * x + (1 - weights[k]) * own[k] if k in weights else x for k, x in received.items()}


def ala_phases(share: float, passes: int) -> dict[str, Phase]:
    """The batches that `learn_weights` uses: up to `passes` like passes in a client's second turn, then one a turn."""
    start = Phase(first=1, last=1, share=share, epochs=passes, reshuffle=False)
    return {"start": start, "ala": Phase(first=2, share=share, epochs=1)}


class _Passes(NamedTuple):
    weights: Tree
    losses: Tensor  # [window], the last one of each of the last passes
    made: Tensor
    settled: Tensor


def learn_weights(
    net: Net,
    received: Tree,
    own: Tree,
    weights: Tree,
    data: Data,
    *,
    eta: float,
    passes: int,
    window: int,
    threshold: float,
) -> Tree:
    """The weights after this turn's passes: W <- clamp(W - eta g (received - own), 0, 1), g the gradient at the blend.

    In the start phase, passes end once the last losses of more than `window` passes are there, and those of the last
    `window` have a standard deviation below `threshold`. Neither model changes, and running statistics are thrown away.
    """
    opt = Clamped(eta)

    def step(carry: _Passes, batch: Batch, received: Tree, own: Tree, per_pass: Tensor, rate: Tensor) -> _Passes:
        w, losses, made, settled = carry
        g, loss = grad_and_value(lambda w: net.loss(blend(received, own, w), batch).value)(w)
        moved, _ = opt.update(g, {}, w, rate)
        w = each(lambda old, change: torch.where(settled, old, old + change), w, moved)
        ends = (batch.number + 1) % per_pass == 0
        losses = torch.where(ends, torch.cat([losses[1:], loss[None]]), losses)
        made = made + ends
        quiet = (made > window) & (losses.std(correction=0) < threshold)
        return _Passes(w, losses, made, settled | quiet)

    for phase, most in (("start", passes), ("ala", 1)):
        per_pass = (data.steps(phase) / most).round().to(torch.int64).clamp(min=1)
        still = torch.zeros_like(data.past)
        first = _Passes(weights, data.rate.new_zeros(window), still, still > 0)
        given = (received, own, per_pass, data.rate)
        weights = scan(step, first, data, given=given, phase=phase, until=lambda carry: carry.settled).weights
    return weights


class Blended(NamedTuple):
    """What the plug-in keeps at a client: the model after its last turn, and the weights of the upper layers."""

    model: Tree
    weights: Tree


def with_blend(
    method: Method,
    upper: Select = role("head"),
    *,
    eta: float = 1.0,
    share: float = 0.8,
    passes: int = 100,
    window: int = 10,
    threshold: float = 0.01,
) -> Method:
    """The same method, whose clients take a learnt blend of the received model and their own for the received one.

    Its upload on `model` must be the change of the model: a method that sends another says so in the registry, as an
    exemption from `blend`, and is refused.
    """
    known = REGISTRY.get(method.name)
    if known and "blend" in known.exempt:
        raise SettingError(f"blending takes a client's own model from its upload, and {known.exempt['blend']}")

    def first(net: Net, tree: Tree) -> Blended:
        chosen, _ = net.split(net.learnable(tree), upper)
        return Blended(tree, each(torch.ones_like, chosen))

    def blended(task: Task[Any, Any], kept: Blended | None) -> Task[Any, Any]:
        got = task.down.model
        start = got if kept is None else blend(got, *kept)
        return task._replace(down=task.down._replace(model=start))

    def enter(net: Net, task: Task[Any, Any], kept: Blended) -> tuple[Task[Any, Any], Blended]:
        got, (own, weights) = task.down.model, kept
        if set(got) != set(net.roles):
            raise SettingError(f"blending needs a whole model to arrive, which {method.name} does not send")
        weights = learn_weights(
            net, got, own, weights, task.data, eta=eta, passes=passes, window=window, threshold=threshold
        )
        return blended(task, Blended(own, weights)), Blended(own, weights)

    def leave(got: Tree, start: Tree, change: Tree, kept: Blended) -> tuple[Tree, Blended]:
        local = add(change, start)
        return sub(local, got), kept._replace(model={**kept.model, **local})

    plug = Plug(first, enter, leave, lambda net, task, kept: blended(task, kept))
    return replace(plugged(method, plug), phases={**method.phases, **ala_phases(share, passes)})
