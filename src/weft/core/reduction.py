"""From the uploads of many clients to what the server's step takes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from weft.core.channel import Sum, keep_all, mean
from weft.core.clients import Part
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


def gathered(method: Method, net: Net, parts: Sequence[Part]) -> tuple[Any, Tensor, Tensor]:
    """(what all parts reduce to, client ids ascending, their weights); every part holds a client."""
    ids, order = torch.cat([part.ids for part in parts]).sort()
    weights = torch.cat([part.weights for part in parts])
    weights = weights[order.to(weights.device)]
    ups = [part.up for part in parts]
    if sums(method):
        whole = ups[0] if len(ups) == 1 else joined(method, net, ups, [part.weights for part in parts])
        return whole, ids, weights
    stack = ups[0] if len(ups) == 1 else tree_map(lambda *x: torch.cat(x)[order.to(x[0].device)], *ups)
    return reduced(method, net, stack, weights), ids, weights
