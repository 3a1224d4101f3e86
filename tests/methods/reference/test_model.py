"""The hand-written gradients against central differences."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from .model import EPS, BnMlp, Mlp, Model, Quadratic, ReluMlp, Tree
from .world import first_model

MODELS = {"mlp": Mlp, "relu": ReluMlp, "bn": BnMlp}


def numerical(loss: Callable[[Tree], float], p: Tree, names: list[str], step: float = 1e-5) -> Tree:
    grad = {}
    for name in names:
        grad[name] = np.zeros_like(p[name])
        for place in np.ndindex(p[name].shape):
            sides = []
            for move in (step, -step):
                moved = p[name].copy()
                moved[place] += move
                sides.append(loss(p | {name: moved}))
            grad[name][place] = (sides[0] - sides[1]) / (2 * step)
    return grad


def close(a: Tree, b: Tree, atol: float = 1e-8) -> None:
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_allclose(a[name], b[name], rtol=1e-6, atol=atol, err_msg=name)


def example(model: Model, rows: int = 7) -> tuple[Tree, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(3)
    return first_model(rng, model, 3, 4, 5), rng.normal(size=(rows, 3)), rng.integers(0, 5, rows)


@pytest.mark.parametrize("rows", [2, 7])
@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_gradient_of_the_loss(model: Model, rows: int) -> None:
    p, x, y = example(model, rows)
    close(model.grad(p, x, y), numerical(lambda q: model.loss(q, x, y), p, model.trainable(p)), 1e-7)


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_gradient_through_the_features(model: Model) -> None:
    p, x, _ = example(model)
    d = np.random.default_rng(4).normal(size=(7, 4))
    through = model.grad_through_features(p, x, d)
    close(
        through, numerical(lambda q: float((d * model.features(q, x, train=True)).sum()), p, model.trainable(p)), 1e-7
    )
    assert not through["head.weight"].any() and not through["head.bias"].any()


def test_gradient_of_the_quadratic() -> None:
    rng = np.random.default_rng(5)
    p = {"a": rng.normal(size=(1, 2)), "b": rng.normal(size=1), "c": rng.normal(size=2)}
    x, y = rng.normal(size=(4, 5)), rng.uniform(0.5, 2.0, 4)
    close(Quadratic.grad(p, x, y), numerical(lambda q: Quadratic.loss(q, x, y), p, list(p)))


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_loss_is_the_mean_over_the_rows(model: Model) -> None:
    p, x, y = example(model)
    z = model.logits(p, x, train=True)
    chance = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
    assert model.loss(p, x, y) == pytest.approx(-np.mean([np.log(chance[j, y[j]]) for j in range(7)]))


def test_batch_norm_by_its_definition() -> None:
    p, x, _ = example(BnMlp)
    a = x @ p["body.weight"].T + p["body.bias"]
    carried = BnMlp.carry(p, x)
    np.testing.assert_allclose(carried["norm.running_mean"], 0.1 * a.sum(axis=0) / 7)
    np.testing.assert_allclose(carried["norm.running_var"], 0.9 + 0.1 * ((a - a.mean(axis=0)) ** 2).sum(axis=0) / 6)
    train = (a - a.mean(axis=0)) / np.sqrt(((a - a.mean(axis=0)) ** 2).mean(axis=0) + EPS)
    np.testing.assert_allclose(BnMlp.features(p, x, train=True), np.tanh(p["norm.weight"] * train + p["norm.bias"]))
    still = p["norm.weight"] * a / np.sqrt(1.0 + EPS) + p["norm.bias"]
    np.testing.assert_allclose(BnMlp.features(p, x), np.tanh(still))
    assert BnMlp.grad(p, x, np.zeros(7, int)).keys() == set(BnMlp.trainable(p))


def test_one_row_has_no_variance() -> None:
    p, x, _ = example(BnMlp)
    with pytest.raises(ValueError, match="at least 2"):
        BnMlp.carry(p, x[:1])
