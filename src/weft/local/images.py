"""Convolutions and poolings of a graph, as a CPU does them best.

The channels of a pixel lie side by side, in activations and gradients alike. A convolution of images with few channels
becomes a product with columns, one for each place of the kernel. A pooling comes before the ReLU that it follows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph

aten = torch.ops.aten

FEW, WINDOW = 4, 25
"""Channels, and places of a kernel, up to which columns pay: oneDNN runs such a convolution at a quarter of the speed
of a matrix product (docs/performance.md)."""


def kernels(graph: Graph, carry: int) -> frozenset[int]:
    """Places among the first `carry` inputs of kernels, whose channels should lie side by side too: oneDNN reorders
    them for each pass.
    """
    found = set()
    for node in graph.find_nodes(op="call_function", target=aten.convolution.default):
        kernel = node.args[1]
        while kernel.target is aten._to_copy.default:
            kernel = kernel.args[0]
        if node.args[8] == 1 and kernel.meta["val"].ndim == 4:
            found.add(kernel)
    inputs = [n for n in graph.nodes if n.op == "placeholder"][:carry]
    return frozenset(i for i, n in enumerate(inputs) if n in found)


def turned(tensors: Sequence[Tensor], places: frozenset[int]) -> list[Tensor]:
    """Those at these places with channels last."""
    return [x.contiguous(memory_format=torch.channels_last) if i in places else x for i, x in enumerate(tensors)]


def pool_first(graph: Graph) -> None:
    """relu(pool(x)) for pool(relu(x)): the same numbers and slopes, and the ReLU has fewer of them to look at."""
    for pool in graph.find_nodes(op="call_function", target=_POOL):
        relu = pool.args[0]
        slopes = [n for n in relu.users if n.target is _POOL_SLOPE and n.args[1] is relu]
        passed = [n for n in relu.users if n.target is _RELU_SLOPE and n.args[1] is relu and n.args[2] == 0]
        if relu.target is not aten.relu.default or {pool, *slopes, *passed} != set(relu.users):
            continue
        if {n.args[0] for n in passed} != set(slopes) or any(len(n.users) != 1 for n in slopes):
            continue
        pool.update_arg(0, relu.args[0])
        found = next(n for n in pool.users if n.args[1] == 0)
        with graph.inserting_after(found):
            late = graph.call_function(aten.relu.default, (found,))
        late.meta = dict(found.meta)
        found.replace_all_uses_with(late, lambda user, late=late: user is not late)
        for slope in slopes:
            with graph.inserting_before(slope):
                let = graph.call_function(_RELU_SLOPE, (slope.args[0], late, 0))
            let.meta = dict(slope.args[0].meta)
            slope.args = (let, relu.args[0], *slope.args[2:])
        for node in passed:
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)
        graph.erase_node(relu)


def _lies_well(*images: Tensor) -> bool:
    """Channels last, or nothing that could."""
    return images[0].ndim != 4 or all(x.is_contiguous(memory_format=torch.channels_last) for x in images)


def _laid(*images: Tensor) -> list[Tensor]:
    return [x.contiguous(memory_format=torch.channels_last) for x in images]


def _convolution(x: Tensor, w: Tensor, b: Tensor | None, *how: Any) -> Any:
    if how[-1] != 1:
        return NotImplemented
    if _few(x, w, how):
        met, size = columns(x, w, how)
        kernel = w.flatten(1).t()
        flat = met.t() @ kernel
        flat = flat if b is None else flat + b
        return flat.reshape(*size, -1).permute(0, 3, 1, 2)
    return NotImplemented if _lies_well(x) else aten.convolution(*_laid(x), w, b, *how)


def _convolution_backward(g: Tensor, x: Tensor, w: Tensor, sizes: Any, *how: Any) -> Any:
    *how, asked = how  # type: ignore[assignment]
    if how[-1] != 1:
        return NotImplemented
    if _few(x, w, how) and asked[1]:
        met, _ = columns(x, w, how)
        flat = g.permute(0, 2, 3, 1).reshape(-1, len(w))
        before = aten.convolution_backward(g, x, w, sizes, *how, [True, False, False])[0] if asked[0] else None
        return before, (met @ flat).t().reshape(w.shape), flat.sum(0) if asked[2] else None
    return NotImplemented if _lies_well(g, x) else aten.convolution_backward(*_laid(g, x), w, sizes, *how, asked)


def _few(x: Tensor, w: Tensor, how: Sequence[Any]) -> bool:
    transposed = how[3]
    return x.ndim == 4 and not transposed and w.shape[1] <= FEW and w[0, 0].numel() <= WINDOW


def columns(x: Tensor, w: Tensor, how: Sequence[Any]) -> tuple[Tensor, tuple[int, int, int]]:
    """(what each place of the kernel meets [channels * places, images * height * width], (images, height, width))."""
    stride, padding, dilation = (list(v) * (2 // len(v)) for v in how[:3])
    if any(padding):
        x = aten.constant_pad_nd(x, [padding[1], padding[1], padding[0], padding[0]])
    n, c, high, wide = x.shape
    kernel = list(w.shape[2:])
    size = [(m - d * (k - 1) - 1) // s + 1 for m, d, k, s in zip((high, wide), dilation, kernel, stride, strict=True)]
    of_image, of_channel, of_row, of_pixel = x.stride()
    met = x.as_strided(
        (c, *kernel, n, *size),
        (
            of_channel, dilation[0] * of_row, dilation[1] * of_pixel,
            of_image, stride[0] * of_row, stride[1] * of_pixel,
        ),
    )  # fmt: skip
    return met.reshape(c * kernel[0] * kernel[1], -1), (n, *size)


def _max_pool(x: Tensor, *how: Any) -> Any:
    return NotImplemented if _lies_well(x) else _POOL(*_laid(x), *how)


def _max_pool_backward(g: Tensor, x: Tensor, *how: Any) -> Any:
    *how, places = how  # type: ignore[assignment]
    if _lies_well(g, x, places):
        return NotImplemented
    g, x, places = _laid(g, x, places)
    return _POOL_SLOPE(g, x, *how, places)


_POOL, _POOL_SLOPE = aten.max_pool2d_with_indices.default, aten.max_pool2d_with_indices_backward.default
_RELU_SLOPE = aten.threshold_backward.default
WAYS: dict[Any, Any] = {
    aten.convolution.default: _convolution,
    aten.convolution_backward.default: _convolution_backward,
    _POOL: _max_pool,
    _POOL_SLOPE: _max_pool_backward,
}
"""What operations are traced to; `NotImplemented` leaves them."""
