"""Epsilon computed in other ways than the ledger's, from the definitions: nothing here imports an accountant."""

from __future__ import annotations

import math
from decimal import MAX_EMAX, MIN_EMIN, Context, Decimal, setcontext
from functools import cache

import numpy as np
from scipy.optimize import brentq
from scipy.signal import fftconvolve
from scipy.special import log_ndtr, ndtr

Array = np.ndarray


def gaussian(z: float, rounds: int, delta: float) -> float:
    """Of the Gaussian mechanism, from its exact delta (Balle and Wang 2018, Theorem 8), by bisection."""
    mu = math.sqrt(rounds) / z

    def excess(epsilon: float) -> float:
        second = math.exp(min(epsilon + log_ndtr(-mu / 2 - epsilon / mu), 0.0))
        return float(ndtr(mu / 2 - epsilon / mu)) - second - delta

    return 0.0 if excess(0.0) <= 0 else float(brentq(excess, 0.0, mu * mu + 40 * mu + 1, xtol=1e-10))


def sampled(z: float, chance: float, rounds: int, delta: float) -> float:
    """Of rounds on Poisson samples: the losses of both directions, on a grid, folded by squaring."""
    return max(_direction(z, chance, rounds, delta, add) for add in (True, False))


def _direction(z: float, chance: float, rounds: int, delta: float, add: bool) -> float:
    """P is what is observed: N(0, z^2) when one is added, the mixture when one is removed; loss = log P / Q."""
    x = np.linspace(-12 * z, 12 * z + 1, 400_001)
    ratio = np.logaddexp(math.log1p(-chance), math.log(chance) + (2 * x - 1) / (2 * z * z))  # log mixture / N(0, z^2)
    below = ndtr(x / z) if add else (1 - chance) * ndtr(x / z) + chance * ndtr((x - 1) / z)
    mass = np.diff(below)
    loss = (-1 if add else 1) * (ratio[1:] + ratio[:-1]) / 2
    mean = float(mass @ loss)
    std = math.sqrt(float(mass @ (loss - mean) ** 2))
    step = max(std / 60, (loss.max() - loss.min()) / 2e4)
    low = math.floor(loss.min() / step)
    place = loss / step - low
    left = np.floor(place).astype(int)
    pmf = np.zeros(left.max() + 2)  # split between the two neighbours, so that the mean of the loss stays
    np.add.at(pmf, left, mass * (1 - (place - left)))
    np.add.at(pmf, left + 1, mass * (place - left))
    pmf, low = _folded(pmf, low, rounds)
    losses = (np.arange(len(pmf)) + low) * step

    def excess(epsilon: float) -> float:
        above = losses > epsilon
        return float(pmf[above] @ -np.expm1(epsilon - losses[above])) - delta

    return 0.0 if excess(0.0) <= 0 else float(brentq(excess, 0.0, losses[-1] + 1, xtol=1e-9))


def _folded(pmf: Array, low: int, times: int) -> tuple[Array, int]:
    whole, start = np.ones(1), 0
    while times:
        if times % 2:
            whole, start = _trimmed(fftconvolve(whole, pmf), start + low)
        times //= 2
        if times:
            pmf, low = _trimmed(fftconvolve(pmf, pmf), 2 * low)
    return whole, start


def _trimmed(pmf: Array, low: int) -> tuple[Array, int]:
    """Without tails of 1e-15, and what rounding made negative."""
    pmf = np.maximum(pmf, 0)
    keep = np.flatnonzero((np.cumsum(pmf) > 1e-15) & (np.cumsum(pmf[::-1])[::-1] > 1e-15))
    return pmf[keep[0] : keep[-1] + 1], low + int(keep[0])


def replaced(z: float, clients: int, cohort: int, rounds: int, delta: float) -> float:
    """Of rounds without replacement: Theorem 27 of Wang et al. 2019 in exact decimals; z is that of a replacement."""
    setcontext(Context(prec=500, Emax=MAX_EMAX, Emin=MIN_EMIN))
    chance = Decimal(cohort) / Decimal(clients)
    powers = [chance**j for j in range(201)]
    best = math.inf
    for order in [*range(2, 33), *range(36, 201, 4)]:
        total = 1 + sum(powers[j] * math.comb(order, j) * _term(z, j) for j in range(2, order + 1))
        spent = rounds * float(total.ln()) / (order - 1)
        # Canonne, Kamath, Steinke 2020, Proposition 12
        best = min(best, spent + math.log1p(-1 / order) - math.log(delta * order) / (order - 1))
    return max(0.0, min(best, gaussian(z, rounds, delta)))


@cache
def _term(z: float, j: int) -> Decimal:
    if j == 2:
        return min(4 * (_moment(z, 2) - 1), 2 * _moment(z, 2))
    ternary = 4 * (_difference(z, 2 * (j // 2)) * _difference(z, 2 * ((j + 1) // 2))).sqrt()
    return min(ternary, 2 * _moment(z, j))


@cache
def _moment(z: float, order: int) -> Decimal:
    """E_Q (P/Q)^order = exp((order - 1) * order / (2 z^2)) of two Gaussians at distance 1."""
    return (Decimal(order * (order - 1)) / (2 * Decimal(z) ** 2)).exp()


@cache
def _difference(z: float, order: int) -> Decimal:
    """E_Q (P/Q - 1)^order, of which `order` is even."""
    return sum(((-1) ** (order - i) * math.comb(order, i) * _moment(z, i) for i in range(order + 1)), Decimal(0))
