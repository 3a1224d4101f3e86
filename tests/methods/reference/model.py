"""Toy models with gradients written by hand: a classifier, one with batch norm, and a quadratic."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Tree = dict[str, Array]

MOMENTUM, EPS = 0.1, 1e-5


@dataclass(frozen=True)
class Model:
    """A model as functions of a flat tree `p`; `x` is [rows, d], `y` is [rows].

    `loss`, `grad` and `grad_through_features` are those of training (batch statistics where there is batch
    norm); `features` and `logits` take `train=False`. `carry(p, x)` gives the buffers after one training pass
    over `x`. Gradients hold every trainable tensor and no buffer.
    """

    loss: Callable[[Tree, Array, Array], float]
    grad: Callable[[Tree, Array, Array], Tree]
    features: Callable[..., Array]
    logits: Callable[..., Array]
    grad_through_features: Callable[[Tree, Array, Array], Tree]
    carry: Callable[[Tree, Array], Tree]
    buffers: tuple[str, ...] = ()

    def trainable(self, p: Tree) -> list[str]:
        """The names of the tensors of `p` that have a gradient."""
        return [name for name in p if name not in self.buffers]


def softmax(z: Array) -> Array:
    """Over the last axis."""
    e = np.exp(z - z.max(axis=-1, keepdims=True))
    return np.asarray(e / e.sum(axis=-1, keepdims=True))


def cross_entropy(z: Array, y: Array) -> float:
    """Mean over the rows of -log softmax(z)[y]."""
    top = z.max(axis=1)
    return float(np.mean(top + np.log(np.exp(z - top[:, None]).sum(axis=1)) - z[np.arange(len(y)), y]))


def _dlogits(z: Array, y: Array) -> Array:
    d = softmax(z)
    d[np.arange(len(y)), y] -= 1.0
    return d / len(y)


def _head(p: Tree, f: Array) -> Array:
    return np.asarray(f @ p["head.weight"].T + p["head.bias"])


def _body(p: Tree, x: Array) -> Array:
    return np.asarray(x @ p["body.weight"].T + p["body.bias"])


def _through_head(p: Tree, f: Array, dz: Array) -> tuple[Tree, Array]:
    return {"head.weight": dz.T @ f, "head.bias": dz.sum(axis=0)}, dz @ p["head.weight"]


def _plain(act: Callable[[Array], Array], slope: Callable[[Array], Array]) -> Model:
    """Body, activation, head; `slope` is the activation's derivative as a function of its value."""

    def features(p: Tree, x: Array, train: bool = False) -> Array:
        return np.asarray(act(_body(p, x)))

    def logits(p: Tree, x: Array, train: bool = False) -> Array:
        return _head(p, features(p, x))

    def loss(p: Tree, x: Array, y: Array) -> float:
        return cross_entropy(logits(p, x), y)

    def body(x: Array, f: Array, df: Array) -> Tree:
        da = df * slope(f)
        return {"body.weight": da.T @ x, "body.bias": da.sum(axis=0)}

    def grad(p: Tree, x: Array, y: Array) -> Tree:
        f = features(p, x)
        head, df = _through_head(p, f, _dlogits(_head(p, f), y))
        return body(x, f, df) | head

    def through(p: Tree, x: Array, df: Array) -> Tree:
        zeros = {name: np.zeros_like(p[name]) for name in ("head.weight", "head.bias")}
        return body(x, features(p, x), df) | zeros

    return Model(loss, grad, features, logits, through, lambda p, x: {})


Mlp = _plain(np.tanh, lambda f: 1.0 - f**2)
ReluMlp = _plain(lambda a: np.maximum(a, 0.0), lambda f: f > 0)


def _bn_forward(p: Tree, x: Array, train: bool) -> tuple[Array, Array, Array]:
    """Features, normalised activations and the standard deviation they were divided by."""
    a = _body(p, x)
    mean, var = (a.mean(axis=0), a.var(axis=0)) if train else (p["norm.running_mean"], p["norm.running_var"])
    std = np.sqrt(var + EPS)
    unit = (a - mean) / std
    return np.tanh(p["norm.weight"] * unit + p["norm.bias"]), unit, std


def _bn_features(p: Tree, x: Array, train: bool = False) -> Array:
    return _bn_forward(p, x, train)[0]


def _bn_logits(p: Tree, x: Array, train: bool = False) -> Array:
    return _head(p, _bn_features(p, x, train))


def _bn_loss(p: Tree, x: Array, y: Array) -> float:
    return cross_entropy(_bn_logits(p, x, train=True), y)


def _bn_body(p: Tree, x: Array, f: Array, unit: Array, std: Array, df: Array) -> Tree:
    dn = df * (1.0 - f**2)
    du = dn * p["norm.weight"]
    da = (du - du.mean(axis=0) - unit * (du * unit).mean(axis=0)) / std
    return {
        "body.weight": da.T @ x,
        "body.bias": da.sum(axis=0),
        "norm.weight": (dn * unit).sum(axis=0),
        "norm.bias": dn.sum(axis=0),
    }


def _bn_grad(p: Tree, x: Array, y: Array) -> Tree:
    f, unit, std = _bn_forward(p, x, train=True)
    head, df = _through_head(p, f, _dlogits(_head(p, f), y))
    return _bn_body(p, x, f, unit, std, df) | head


def _bn_through(p: Tree, x: Array, df: Array) -> Tree:
    f, unit, std = _bn_forward(p, x, train=True)
    zeros = {name: np.zeros_like(p[name]) for name in ("head.weight", "head.bias")}
    return _bn_body(p, x, f, unit, std, df) | zeros


def _bn_carry(p: Tree, x: Array) -> Tree:
    if len(x) < 2:
        raise ValueError(f"a training batch of {len(x)} row has no variance: batch norm needs at least 2")
    a = _body(p, x)
    return {
        "norm.running_mean": (1.0 - MOMENTUM) * p["norm.running_mean"] + MOMENTUM * a.mean(axis=0),
        "norm.running_var": (1.0 - MOMENTUM) * p["norm.running_var"] + MOMENTUM * a.var(axis=0, ddof=1),
    }


BnMlp = Model(
    _bn_loss, _bn_grad, _bn_features, _bn_logits, _bn_through, _bn_carry, ("norm.running_mean", "norm.running_var")
)


def _point(p: Tree) -> Array:
    return np.concatenate([v.ravel() for v in p.values()])


def _quadratic_loss(p: Tree, x: Array, y: Array) -> float:
    return float(np.mean(0.5 * y * ((_point(p) - x) ** 2).sum(axis=1)))


def _quadratic_grad(p: Tree, x: Array, y: Array) -> Tree:
    g = (y[:, None] * (_point(p) - x)).mean(axis=0)
    parts = np.split(g, np.cumsum([v.size for v in p.values()])[:-1])
    return {name: part.reshape(p[name].shape) for name, part in zip(p, parts, strict=True)}


def _no_features(*_: Any, **__: Any) -> Any:
    raise ValueError("a quadratic has neither features nor logits")


# mean over rows of y/2 * ||w - x||^2, w the tensors of p end to end: y holds curvatures, x minimisers
Quadratic = Model(_quadratic_loss, _quadratic_grad, _no_features, _no_features, _no_features, lambda p, x: {})
