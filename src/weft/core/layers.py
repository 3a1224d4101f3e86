"""Layers that take what they need to know about a batch as data: the mask of live rows and a random key.

Batch norm must not see padding, and dropout must draw the same masks under every executor. `replaced` puts these
layers where a network has the usual ones; names and entries stay the same.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from weft.core.errors import SettingError
from weft.core.stream import at_least


class MaskedBatchNorm(nn.Module):
    """Batch norm over the live rows only; equal to `nn.BatchNorm1d/2d/3d` when every row is live.

    As there, the biased variance normalises and the unbiased one enters the running variance.
    """

    running_mean: Tensor
    running_var: Tensor
    live: Tensor

    def __init__(self, like: nn.modules.batchnorm._BatchNorm) -> None:
        super().__init__()
        self.eps, self.momentum = like.eps, like.momentum
        self.weight, self.bias = like.weight, like.bias
        self.register_buffer("running_mean", like.running_mean)
        self.register_buffer("running_var", like.running_var)
        self.register_buffer("live", torch.ones(1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise x, [batch, channels, ...]."""
        shape = [1, -1] + [1] * (x.ndim - 2)
        if not self.training:
            mean, var = self.running_mean, self.running_var
        else:
            axes = [0, *range(2, x.ndim)]
            live = self.live.reshape([-1] + [1] * (x.ndim - 1))
            n = live.sum() * (x[0, 0].numel() if x.ndim > 2 else 1)
            mean = (x * live).sum(axes) / n.clamp(min=1)
            var = (live * (x - mean.reshape(shape)) ** 2).sum(axes) / n.clamp(min=1)
            with torch.no_grad():
                m = self.momentum or 0.0
                fresh = n > 0
                unbiased = var * n / (n - 1).clamp(min=1)
                self.running_mean.copy_(
                    torch.where(fresh, self.running_mean + m * (mean - self.running_mean), self.running_mean)
                )
                self.running_var.copy_(
                    torch.where(fresh, self.running_var + m * (unbiased - self.running_var), self.running_var)
                )
        y = (x - mean.reshape(shape)) * (var + self.eps).rsqrt().reshape(shape)
        return y if self.weight is None else y * self.weight.reshape(shape) + self.bias.reshape(shape)


class StreamDropout(nn.Module):
    """Dropout whose mask is a function of a key, not of a generator's state."""

    key: Tensor

    def __init__(self, p: float, keep_axes: int | None = None) -> None:
        super().__init__()
        self.p, self.keep_axes = p, keep_axes
        self.register_buffer("key", torch.zeros((), dtype=torch.int64), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Zero entries with probability p and scale the others by 1 / (1 - p)."""
        if not self.training or self.p == 0:
            return x
        shape = (
            list(x.shape) if self.keep_axes is None else [*x.shape[: self.keep_axes], *[1] * (x.ndim - self.keep_axes)]
        )
        return x * (at_least(self.p, self.key, shape, x.dtype) / (1 - self.p))


def replaced(module: nn.Module) -> nn.Module:
    """The same network with masked batch norm and keyed dropout; raises `SettingError` for what cannot be."""
    for name, child in module.named_children():
        setattr(module, name, replaced(child))
    if isinstance(module, nn.modules.batchnorm._BatchNorm):
        if module.momentum is None or module.running_mean is None:
            raise SettingError(
                "batch norm with momentum=None or track_running_stats=False cannot be carried between clients: "
                "set a momentum such as 0.1"
            )
        return MaskedBatchNorm(module)
    if isinstance(module, nn.Dropout):
        return StreamDropout(module.p)
    if isinstance(module, nn.Dropout1d | nn.Dropout2d | nn.Dropout3d):
        return StreamDropout(module.p, keep_axes=2)
    if isinstance(module, nn.RNNBase):
        raise SettingError(
            f"{type(module).__name__} cannot be run for many clients at once: use the model 'lstm', or write the cell "
            "as matrix products"
        )
    return module
