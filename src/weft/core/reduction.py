"""From the uploads of many clients to what the server's step takes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from weft.core.channel import Sum, keep_all, mean
from weft.core.clients import Part, Traffic
from weft.core.method import Method
from weft.core.net import Net
from weft.core.turn import encoded


def sums(method: Method) -> bool:
    """Whether the uploads of a turn can be reduced in parts."""
    return all(isinstance(channel.reduce, Sum) for channel in method.up.values())


def reduced(method: Method, net: Net, up: Any, weights: Tensor) -> Any:
    """Each channel of a stack of uploads by its reduction; running statistics by the weighted mean."""
    found = {}
    for name, stack in up._asdict().items():
        reduce = method.up[name].reduce
        coded, carried = encoded(net, stack)
        found[name] = {**reduce(coded, weights), **(keep_all if reduce is keep_all else mean)(carried, weights)}
    return type(up)(**found)


def joined(method: Method, net: Net, parts: Sequence[Any], weights: Sequence[Tensor]) -> Any:
    """What a whole cohort reduces to, from what its parts have reduced to and the weights of their clients."""
    found = {}
    for name in parts[0]._fields:
        reduce = method.up[name].reduce
        assert isinstance(reduce, Sum)
        coded, carried = zip(*(encoded(net, getattr(part, name)) for part in parts), strict=True)
        found[name] = {**reduce.join(coded, weights), **mean.join(carried, weights)}
    return type(parts[0])(**found)


def merged(method: Method, net: Net, parts: Sequence[Part]) -> Part:
    """Several parts as one, to be reduced further: sums as partial sums, other uploads stacked in the order of ids."""
    if len(parts) == 1:
        return parts[0]
    full = [part for part in parts if len(part.ids)] or parts[:1]
    ids, order = torch.cat([part.ids for part in full]).sort()
    weights = torch.cat([part.weights for part in full])
    ups = [part.up for part in full]
    if len(ups) == 1:
        up = ups[0]
    elif sums(method):
        up = joined(method, net, ups, [part.weights for part in full])
    else:
        up = tree_map(lambda *x: torch.cat(x)[order.to(x[0].device)], *ups)
    return Part(
        ids,
        weights[order.to(weights.device)],
        up,
        torch.cat([part.skipped for part in parts]),
        next((part.culprit for part in parts if part.culprit), ""),
        Traffic(sum(part.traffic.up for part in parts), sum(part.traffic.down for part in parts)),
        sum(part.steps for part in parts),
        full[0].rate,
    )


def gathered(method: Method, net: Net, parts: Sequence[Part]) -> tuple[Any, Tensor, Tensor]:
    """(what all parts reduce to, client ids ascending, their weights); every part holds a client."""
    whole = merged(method, net, parts)
    up = whole.up if sums(method) else reduced(method, net, whole.up, whole.weights)
    return up, whole.ids, whole.weights
