"""Convolutions of stacked clients as products of matrices, one for each client.

Under `vmap` a convolution whose kernel is another one for each client has a group for each. Libraries for GPUs run
many small groups far below the speed of their products.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from weft.local.images import columns

aten = torch.ops.aten


def _convolution(x: Tensor, w: Tensor, b: Tensor | None, *how: Any) -> Any:
    if not _stacked(x, how):
        return NotImplemented
    met, (n, high, wide) = columns(x, w, how)
    out = _by_client(w, how[-1]) @ met.reshape(how[-1], -1, met.shape[1])  # [clients, channels, n * high * wide]
    out = out.reshape(-1, n, high, wide).transpose(0, 1)
    return out if b is None else out + b[:, None, None]


def _convolution_backward(g: Tensor, x: Tensor, w: Tensor, sizes: Any, *how: Any) -> Any:
    *how, asked = how  # type: ignore[assignment]
    if not _stacked(x, how):
        return NotImplemented
    (stride, padding, dilation), groups = ([*v * (2 // len(v))] for v in map(list, how[:3])), how[-1]
    slopes = g.transpose(0, 1).reshape(groups, g.shape[1] // groups, -1)
    before = after = None
    if asked[0]:
        met = _by_client(w, groups).transpose(1, 2) @ slopes  # [clients, channels * places, n * high * wide]
        met = met.reshape(-1, len(x), g.shape[2] * g.shape[3]).transpose(0, 1)
        before = aten.col2im(met, x.shape[2:], w.shape[2:], dilation, padding, stride)
    if asked[1]:
        met = columns(x, w, how)[0]
        after = (slopes @ met.reshape(groups, -1, met.shape[1]).transpose(1, 2)).reshape(w.shape)
    return before, after, g.sum((0, 2, 3)) if asked[2] else None


def _stacked(x: Tensor, how: Sequence[Any]) -> bool:
    transposed, groups = how[3], how[-1]
    return x.ndim == 4 and not transposed and groups > 1


def _by_client(w: Tensor, groups: int) -> Tensor:
    return w.reshape(groups, len(w) // groups, -1)


WAYS: dict[Any, Any] = {
    aten.convolution.default: _convolution,
    aten.convolution_backward.default: _convolution_backward,
}
"""What operations are traced to; `NotImplemented` leaves them."""
