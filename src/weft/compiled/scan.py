"""The operation that stands for a loop over steps in the graph of a turn."""

from __future__ import annotations

import torch
from torch import Tensor


@torch.library.custom_op("weft::scan", mutates_args=())
def noted(number: int, carry: int, rows: Tensor, key: Tensor, flat: list[Tensor], tables: list[Tensor]) -> list[Tensor]:
    """What a loop gives, as far as its shapes go.

    Args:
        number: which loop it is.
        carry: how many of `flat` are the carry.
        rows: int64 [steps, batch], -1 = padding.
        key: int64 scalar.
        flat: the first carry, then what stays as it is.
        tables: the tensors of the examples.
    """
    return [x.clone(memory_format=torch.contiguous_format) for x in flat[:carry]]


@noted.register_fake
def _(number: int, carry: int, rows: Tensor, key: Tensor, flat: list[Tensor], tables: list[Tensor]) -> list[Tensor]:
    return [torch.empty_like(x, memory_format=torch.contiguous_format) for x in flat[:carry]]


SCAN = torch.ops.weft.scan.default
