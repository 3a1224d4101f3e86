"""Parts of a round from what nodes answer, joined as they come."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from flwr.app import RecordDict
from torch import Tensor
from torch.utils._pytree import tree_map

from weft.core.clients import Marks, Message, Part, Traffic
from weft.core.here import culprit_of, finite
from weft.core.method import Method
from weft.core.net import Net
from weft.core.reduction import merged, reduced, sums
from weft.deploy.records import Corrupt, noted, size, uploads
from weft.wire import weigh


def heard(turn: Method, net: Net, message: Message, like: Any, ids: list[int], reply: RecordDict) -> Part:
    """What a node has answered for the clients `ids`.

    Raises:
        Corrupt: it is not what was asked for.
    """
    said = noted(reply, "turn") if "turn" in reply else {}
    if said.get("ids") != ids or len(said.get("weights", [])) != len(ids):
        raise Corrupt(f"its answer is not one of the clients {ids}")
    up = uploads(reply, turn, net, ids, like)
    weights = torch.tensor(said["weights"], dtype=dtype_of(like))
    ok, culprit, whose = finite(up, weights), "", torch.tensor(ids)
    traffic = Traffic(size(reply, "up."), received(turn, message.down) * len(ids))
    if not ok.all():
        culprit = culprit_of(up)
        up, weights = tree_map(lambda x: x[ok], (up, weights))
    if ok.any() and sums(turn):
        up = reduced(turn, net, up, weights)
    rate = torch.tensor(float(said["rate"]), dtype=weights.dtype)
    return Part(whose[ok], weights, up, whose[~ok], culprit, traffic, int(said["steps"]), rate)


def figures(reply: RecordDict, ids: list[int]) -> dict[str, dict[str, Any]]:
    """By the name of what was asked, the marks of those of `ids` that have examples: ``ids``, ``counts``, ``metrics``.

    Raises:
        Corrupt: they are of other clients, or not one for each.
    """
    found = noted(reply, "marks")
    for marks in found.values():
        rows = [marks["counts"], *marks["metrics"].values()]
        if not set(marks["ids"]) <= set(ids) or any(len(row) != len(marks["ids"]) for row in rows):
            raise Corrupt(f"its figures are not those of the clients {ids}")
    return found


def gathered(each: Sequence[dict[str, Any]]) -> Marks:
    """The marks of several nodes in the order of client ids."""
    each = [marks for marks in each if marks["ids"]]
    whose = np.array([k for marks in each for k in marks["ids"]], dtype=np.int64)
    order = np.argsort(whose)
    counts = np.array([n for marks in each for n in marks["counts"]], dtype=np.int64)[order]
    names = list(each[0]["metrics"]) if each else []
    metrics = {n: np.array([v for marks in each for v in marks["metrics"].get(n, [])])[order] for n in names}
    return Marks(whose[order], counts, metrics)


def together(turn: Method, net: Net, parts: list[Part]) -> list[Part]:
    """Two parts become one if every reduction is a sum, so that there is never more than one sum of models."""
    return [merged(turn, net, parts)] if len(parts) > 1 and sums(turn) else parts


def received(turn: Method, down: Any) -> int:
    """Bytes that one client receives."""
    trees: list[dict[str, Tensor]] = list(down._asdict().values())
    if turn.private_send:
        trees = [{k: v[0] for k, v in tree.items()} for tree in trees]
    return sum(weigh(tree, None) for tree in trees)


def dtype_of(like: Any) -> torch.dtype:
    """The type of a weight beside such an upload."""
    floats = [v.dtype for tree in like for v in tree.values() if v.dtype.is_floating_point]
    return floats[0] if floats else torch.get_default_dtype()
