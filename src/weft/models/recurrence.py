"""One layer of an LSTM as an operator: what autograd makes of a loop over time sums weight gradients at every step.

Here the backward pass gathers the gradients of the gates over time, and each weight gradient is one matrix product. One
client on a CPU takes oneDNN's fused layer, whose backward pass torch.func would take apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import flop_registry, register_flop_formula

aten = torch.ops.aten

Low = torch.dtype | None
"""The type of products under autocast; sums and states keep their own."""


def lstm(x: Tensor, w_x: Tensor, w_h: Tensor, b: Tensor, *, keep: bool = True) -> Tensor:
    """The outputs of a layer that starts from zeros.

    Args:
        x: [batch, time, inputs].
        w_x: [4 width, inputs]; gates input, forget, cell, output.
        w_h: [4 width, width].
        b: [4 width].
        keep: hold on to what the backward pass needs, five times as much as the outputs; otherwise it is computed
            again should there be one.

    Returns:
        Tensor: [batch, time, width].
    """
    where = x.device.type
    low = torch.get_autocast_dtype(where) if torch.is_autocast_enabled(where) else None
    with torch.autocast(where, enabled=False):
        out, _, _ = _Layer.apply(x, w_x, w_h, b, keep, low)  # type: ignore[no-untyped-call]
    return out  # type: ignore[no-any-return]


class _Layer(torch.autograd.Function):
    """Gives what is kept besides the outputs: cells, and gates or oneDNN's workspace (uint8)."""

    @staticmethod
    def forward(x: Tensor, w_x: Tensor, w_h: Tensor, b: Tensor, keep: bool, low: Low) -> tuple[Tensor, Tensor, Tensor]:
        return (_fused if _fits(x, w_x, w_h, b, low) else _forward)(x, w_x, w_h, b, keep, low)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        *tensors, ctx.keep, ctx.low = inputs
        ctx.mark_non_differentiable(*output[1:])
        ctx.save_for_backward(*tensors, *output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        *inputs, out, cells, record = ctx.saved_tensors
        if not ctx.keep:
            out, cells, record = _Layer.apply(*inputs, True, ctx.low)  # type: ignore[no-untyped-call]
        slopes = _Slopes.apply(*inputs, out, cells, record, grad, ctx.low)  # type: ignore[no-untyped-call]
        return (*slopes, None, None)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *inputs: Any) -> tuple[tuple[Tensor, ...], int]:
        *tensors, keep, low = inputs
        return _Layer.apply(*_stacked(info, in_dims, tensors), keep, low), 0  # type: ignore[no-untyped-call]


class _Slopes(torch.autograd.Function):
    """The gradients of a layer's inputs."""

    @staticmethod
    def forward(*inputs: Any) -> tuple[Tensor, ...]:
        record, grad = inputs[6:8]
        if record.dtype != torch.uint8:
            return _backward(*inputs)
        if grad.ndim == 3:
            return _fused_backward(*inputs)
        lead = grad.shape[:-3]
        flat = (x.flatten(0, x.ndim - n) for x, n in zip(inputs[:-1], _AXES, strict=True))
        each: Any = zip(*flat, strict=True)
        parts = zip(*(_fused_backward(*[*one, inputs[-1]]) for one in each), strict=True)
        return tuple(torch.stack(part).reshape(*lead, *part[0].shape) for part in parts)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        x, w_x, w_h, b, _, _, _, grad, ctx.low = inputs
        ctx.save_for_backward(x, w_x, w_h, b, grad)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """What the first pass kept depends on the inputs too, so a second derivative goes through the plain loop."""

        def plain(x: Tensor, w_x: Tensor, w_h: Tensor, b: Tensor) -> Tensor:
            return _forward(x, w_x, w_h, b, False, ctx.low)[0]

        def slopes(x: Tensor, w_x: Tensor, w_h: Tensor, b: Tensor, grad: Tensor) -> Any:
            return torch.func.vjp(plain, x, w_x, w_h, b)[1](grad)

        *inputs, grad = torch.func.vjp(slopes, *ctx.saved_tensors)[1](grads)
        return (*inputs, None, None, None, grad, None)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *inputs: Any) -> tuple[tuple[Tensor, ...], int]:
        *tensors, low = inputs
        return _Slopes.apply(*_stacked(info, in_dims, tensors), low), 0  # type: ignore[no-untyped-call]


_AXES = (4, 3, 3, 2, 4, 4, 2, 4)
"""Of x, w_x, w_h, b, out, cells, workspace and grad, with one axis for clients."""


def _stacked(info: Any, in_dims: tuple[int | None, ...], tensors: list[Tensor]) -> list[Tensor]:
    """All with the axis of clients first."""
    return [
        x.expand(info.batch_size, *x.shape) if d is None else x.movedim(d, 0)
        for x, d in zip(tensors, in_dims, strict=False)
    ]


def _forward(x: Tensor, w_x: Tensor, w_h: Tensor, b: Tensor, keep: bool, low: Low) -> tuple[Tensor, Tensor, Tensor]:
    """(outputs [..., batch, time, width], cells likewise, gates before their squashing [..., time, batch, 4 width])."""
    *lead, batch, time, _ = x.shape
    early = x.transpose(-3, -2)
    drive = _sum(b[..., None, :].expand(*lead, batch * time, -1), early.flatten(-3, -2), w_x.mT, low)
    drive = drive.reshape(*lead, time, batch, -1)
    h = c = torch.zeros_like(drive[..., 0, :, : w_h.shape[-1]])
    outs, cells, gates = [], [], []
    for d in drive.unbind(-3):
        z = _sum(d, h, w_h.mT, low)
        i, f, g, o = z.chunk(4, -1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        h = torch.sigmoid(o) * torch.tanh(c)
        outs.append(h)
        if keep:
            cells.append(c)
            gates.append(z)
    if not keep:
        return torch.stack(outs, -2), *_nothing(x)
    return torch.stack(outs, -2), torch.stack(cells, -2), torch.stack(gates, -3)


def _nothing(x: Tensor) -> tuple[Tensor, Tensor]:
    """Empty tensors, with the axes of clients."""
    none = x.new_empty(*x.shape[:-3], 0)
    return none, none.clone()


def _backward(
    x: Tensor, w_x: Tensor, w_h: Tensor, b: Tensor, out: Tensor, cells: Tensor, gates: Tensor, grad: Tensor, low: Low
) -> tuple[Tensor, ...]:
    """Gradients of x, w_x, w_h and b."""
    x, out, cells, grad = (v.transpose(-3, -2) for v in (x, out, cells, grad))  # time first
    i, f, g, o = gates.chunk(4, -1)
    i, f, g, o, squashed = torch.sigmoid(i), torch.sigmoid(f), torch.tanh(g), torch.sigmoid(o), torch.tanh(cells)
    through = o * (1 - squashed**2)
    by = torch.cat([g * i * (1 - i), _before(cells) * f * (1 - f), i * (1 - g**2), squashed * o * (1 - o)], -1)
    steps = zip(*(v.unbind(-3) for v in (grad, through, by, f)), strict=True)
    carried = torch.zeros_like(through[..., 0, :, :])
    each: list[Tensor] = []
    for dh, through_t, by_t, f_t in reversed(list(steps)):
        if each:
            dh = _sum(dh, each[-1], w_h, low)
        dc = carried + dh * through_t
        each.append(torch.cat([dc, dc, dc, dh], -1) * by_t)
        carried = dc * f_t
    dz = torch.stack(each[::-1], -3).flatten(-3, -2)
    flat = (v.flatten(-3, -2) for v in (x, _before(out)))
    d_x = _product(dz, w_x, low).reshape(x.shape).transpose(-3, -2)
    return (d_x, *(_product(dz.mT, v, low) for v in flat), dz.sum(-2))


def _before(x: Tensor) -> Tensor:
    """Every moment's predecessor, zero at first: [..., time, batch, width]."""
    return torch.cat([torch.zeros_like(x[..., :1, :, :]), x[..., :-1, :, :]], -3)


def _product(a: Tensor, b: Tensor, low: Low) -> Tensor:
    return a @ b if low is None else (a.to(low) @ b.to(low)).to(a.dtype)


def _sum(a: Tensor, b: Tensor, c: Tensor, low: Low) -> Tensor:
    """`a + b c`, by one operation where there is one."""
    if low is None and a.ndim in (2, 3):
        return (torch.addmm if a.ndim == 2 else torch.baddbmm)(a, b, c)
    return a + _product(b, c, low)


FUSED = hasattr(aten, "mkldnn_rnn_layer") and hasattr(aten, "mkldnn_rnn_layer_backward")
_LSTM = 2  # its number among oneDNN's kinds of layers


def _fits(x: Tensor, w_x: Tensor, w_h: Tensor, b: Tensor, low: Low) -> bool:
    """One client in float32 on a CPU, with products in float32 or in bfloat16 if the processor has them."""
    if not (FUSED and torch.backends.mkldnn.is_available() and torch.backends.mkldnn.enabled):  # type: ignore[no-untyped-call]
        return False
    if low is not None and not (low == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported()):
        return False
    single = all(v.dtype == torch.float32 and v.device.type == "cpu" for v in (x, w_x, w_h, b))
    return single and x.ndim == 3 and x.numel() > 0


def _fused(x: Tensor, w_x: Tensor, w_h: Tensor, b: Tensor, keep: bool, low: Low) -> tuple[Tensor, Tensor, Tensor]:
    """(outputs, the last cells, oneDNN's workspace)."""
    still = _still(x, w_h, low)
    tensors = (v.detach() for v in _operands(x, w_x, w_h, b, low))
    with torch.enable_grad():  # without it there is no workspace
        out, _, cells, workspace = aten.mkldnn_rnn_layer(
            *tensors, still, still, False, [], _LSTM, w_h.shape[-1], 1, True, False, False, keep
        )  # reverse, batch sizes, kind, width, layers, biases, bidirectional, batch first, train
    kept = (cells, workspace) if keep else _nothing(x)
    return out.transpose(0, 1).to(x.dtype), *kept


def _fused_backward(
    x: Tensor, w_x: Tensor, w_h: Tensor, b: Tensor, out: Tensor, cells: Tensor, workspace: Tensor, grad: Tensor,
    low: Low,
) -> tuple[Tensor, ...]:  # fmt: skip
    """As `_backward`, from what `_fused` gave."""
    still = _still(x, w_h, low)
    out, grad = _early(out, low), _early(grad, low)
    d_x, d_wx, d_wh, d_b, _, _, _ = aten.mkldnn_rnn_layer_backward(
        *_operands(x, w_x, w_h, b, low), still, still, out, out[-1:], cells, grad, still, still,
        False, _LSTM, w_h.shape[-1], 1, True, True, False, [], False, workspace,
    )  # fmt: skip  # reverse, kind, width, layers, biases, train, bidirectional, batch sizes, batch first
    return d_x.transpose(0, 1), d_wx, d_wh, d_b


def _still(x: Tensor, w_h: Tensor, low: Low) -> Tensor:
    """First states, and gradients of the last ones."""
    return x.new_zeros(1, len(x), w_h.shape[-1], dtype=low or x.dtype)


def _early(x: Tensor, low: Low) -> Tensor:
    """Time first."""
    return x.transpose(0, 1).contiguous().to(low or x.dtype)


def _operands(x: Tensor, w_x: Tensor, w_h: Tensor, b: Tensor, low: Low) -> list[Tensor]:
    """Those that both passes take; of two biases the second is zero."""
    return [_early(x, low), *(v.to(low or x.dtype) for v in (w_x, w_h, b, torch.zeros_like(b)))]


def _count(early: Sequence[int], w_x: Sequence[int], w_h: Sequence[int], *_: Any, **__: Any) -> int:
    """Floating-point operations of the fused layer, from shapes."""
    return 2 * early[0] * early[1] * w_x[0] * (w_x[1] + w_h[1])


if FUSED and aten.mkldnn_rnn_layer not in flop_registry:
    register_flop_formula(aten.mkldnn_rnn_layer)(_count)
    register_flop_formula(aten.mkldnn_rnn_layer_backward)(lambda *shapes, **_: 2 * _count(*shapes))
