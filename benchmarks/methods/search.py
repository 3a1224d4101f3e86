"""The search: for every method as many trials, first of the learning rate, then of one parameter of its own.

Trials are judged by validation accuracy alone, with a seed that no reported run has, over half of the rounds.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.methods.settings import Setting

from weft.core.errors import SettingError
from weft.core.registry import find

SEARCH_SEED = 100
SEEDS = (0, 1, 2)
LONGER = 100
"""Rounds of a run, with the chosen options and the first seed, that asks whether an order changes with time."""

PARAMETERS: dict[str, tuple[str, tuple[Any, Any]]] = {
    "apfl": ("alpha", (0.25, 0.75)),
    "apple": ("mu", (0.01, 1.0)),
    "btfl": ("kappa", (1.0, 16.0)),
    "cfl": ("after", (2, 5)),
    "distfl": ("gap_min", (0.02, 0.5)),
    "ditto": ("lam", (0.1, 10.0)),
    "fedadagrad": ("eta", (0.01, 1.0)),
    "fedadam": ("eta", (0.01, 1.0)),
    "fedala": ("eta", (0.1, 10.0)),
    "fedamd": ("p", (0.1, 0.5)),
    "fedamp": ("sigma", (0.1, 10.0)),
    "fedas": ("lr_align", (0.001, 0.1)),
    "fedavg-ft": ("adapt_epochs", (5, 10)),
    "fedavgm": ("beta", (0.5, 0.7)),
    "fedbabu": ("adapt_epochs", (1, 10)),
    "fedcac": ("tau", (0.2, 0.8)),
    "fedcp": ("lam", (0.5, 50.0)),
    "fedcross": ("alpha", (0.5, 0.9)),
    "feddbe": ("kappa", (5.0, 500.0)),
    "feddistill": ("lam", (0.1, 10.0)),
    "feddyn": ("alpha", (0.001, 0.1)),
    "fedfomo": ("M", (2, 10)),
    "fedgc": ("lam", (0.1, 10.0)),
    "fedgen": ("weight", (0.1, 10.0)),
    "fedgh": ("eta_s", (0.001, 0.1)),
    "fedkd": ("start", (0.8, 0.9)),
    "fedlc": ("tau", (0.1, 0.5)),
    "fedmtl": ("lam", (0.0001, 0.01)),
    "fednova": ("gmf", (0.5, 0.9)),
    "fedntd": ("beta", (0.1, 10.0)),
    "fedpac": ("lam", (0.1, 10.0)),
    "fedpcl": ("tau", (0.02, 0.2)),
    "fedphp": ("lam", (0.005, 0.5)),
    "fedproto": ("lam", (0.1, 10.0)),
    "fedprox": ("mu", (0.1, 1.0)),
    "fedrep": ("head_epochs", (2, 5)),
    "fedrod": ("gamma", (0.5, 2.0)),
    "fedyogi": ("eta", (0.01, 1.0)),
    "fml": ("alpha", (0.25, 0.75)),
    "gpfl": ("lam", (0.001, 0.1)),
    "heurfedamp": ("sigma", (1.0, 100.0)),
    "ifca": ("clusters", (2, 8)),
    "marsit": ("eta_s", (0.003, 0.01)),
    "mime": ("beta", (0.0, 0.5)),
    "moon": ("mu", (0.1, 1.0)),
    "per-fedavg": ("alpha", (0.03, 0.1)),
    "pfa": ("groups", (2, 4)),
    "pfedme": ("lam", (5.0, 50.0)),
    "pfl-da": ("lam", (0.1, 10.0)),
    "scaffold": ("eta_g", (0.1, 0.3)),
}
"""Method -> its parameter, and what is tried beside the default. The others have two more learning rates instead."""


def fixed(method: str, rounds: int) -> dict[str, Any]:
    """What every run of a method has: plain SGD for all, and the length of the run where a method must know it."""
    options: dict[str, Any] = {}
    if "opt" in find(method).options:
        options |= {"optimizer": "sgd", "momentum": 0.0, "weight_decay": 0.0}
    told = {"fedkd": {"rounds": rounds}, "pfa": {"warm": rounds // 4}}
    return options | told.get(method, {})


def rates(setting: Setting) -> list[dict[str, Any]]:
    """The first stage."""
    return [{"lr": lr} for lr in setting.rates]


def neighbours(method: str, setting: Setting, lr: float) -> list[dict[str, Any]]:
    """The second stage: two other values of the parameter at the best learning rate, or two rates around it."""
    if method in PARAMETERS:
        name, values = PARAMETERS[method]
        if name not in find(method).options:
            raise SettingError(
                f"the search names the option {name} of {method}, which takes {list(find(method).options)}"
            )
        return [{"lr": lr, name: value} for value in values]
    step = (setting.rates[1] / setting.rates[0]) ** 0.5
    return [{"lr": float(f"{lr / step:.3g}")}, {"lr": float(f"{lr * step:.3g}")}]


def best(trials: list[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """The trial with the best validation accuracy; the first of several, none if all have failed."""
    good = [t for t in trials if "error" not in t]
    return max(good, key=lambda t: t["validation"]) if good else None
