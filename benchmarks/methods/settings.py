"""The settings of the comparison: data, network and budget, the same for every method."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import weft
from weft.core.net import Net
from weft.data.draw import stratified
from weft.data.federated import FederatedData
from weft.data.source import Source

CHARACTERS = 10
"""Characters that the next one is told from."""
VALIDATION = 0.2
"""Share of each client's training examples: twice the usual, since search and choice of the round hang on it."""


@dataclass(frozen=True)
class Setting:
    """One column of the leaderboard."""

    name: str
    title: str
    source: Callable[[], Source]
    division: Mapping[str, Any]
    """Arguments of `weft.federate`."""
    cut: str
    """What was left out so that all methods fit into the time."""
    model: str = "mlp"
    rounds: int = 20
    batch_size: int = 20
    rates: tuple[float, ...] = (0.02, 0.1, 0.5)
    """Learning rates of the search."""
    run: Mapping[str, Any] = field(default_factory=lambda: {"epochs": 1, "evaluate_every": 4})

    def said(self) -> dict[str, Any]:
        """What figures depend on beside the examples, as plain values."""
        return {name: getattr(self, name) for name in ("name", "model", "rounds", "batch_size")} | {
            "division": dict(self.division),
            "rates": list(self.rates),
            "run": dict(self.run),
            "validation": VALIDATION,
        }


def thin(source: Source, train: int, test: int = 0) -> Source:
    """So many examples of each half, spread evenly over clients, domains and labels; without chance."""
    strata = [a for a in (source.owner, source.domain, source.y) if a is not None and a.ndim == 1]
    held = np.zeros(len(source.y), bool) if source.test is None else source.test
    parts = []
    for half, size in ((~held, train), (held, test)):
        rows = np.flatnonzero(half)
        if size:
            rows = rows[stratified(size, *(a[rows] for a in strata))]
        parts.append(rows)
    kept = np.sort(np.concatenate(parts))
    arrays = {name: getattr(source, name) for name in ("x", "y", "test", "owner", "domain")}
    return dataclasses.replace(source, **{k: None if a is None else a[kept] for k, a in arrays.items()})


def next_character() -> Source:
    """Shakespeare by role, as a task of one label: the character that follows ten."""
    text = weft.load("shakespeare", minimum=20000, length=CHARACTERS)
    whole = text.y[:, -1] >= 0
    some = dataclasses.replace(
        text,
        kind="text",
        x=text.x[whole],
        y=text.y[whole, -1],
        owner=text.owner[whole],
        test=text.test[whole],
        note=f"{text.note} Here the character after {CHARACTERS}.",
    )
    roles = np.unique(some.owner)[:10]
    rows = np.flatnonzero(np.isin(some.owner, roles))
    few = {name: getattr(some, name)[rows] for name in ("x", "y", "owner", "test")}
    return thin(dataclasses.replace(some, **few), 4000, 1000)


class NextCharacter(nn.Module):
    """Embeddings of the characters side by side, a hidden layer, a head (Bengio et al. 2003)."""

    def __init__(self, vocabulary: int, classes: int, hidden: int = 64) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, 8)
        self.hidden = nn.Linear(8 * CHARACTERS, hidden)
        self.head = nn.Linear(hidden, classes)

    def forward(self, x: Tensor) -> Tensor:
        """x: tokens [batch, characters]; returns logits [batch, classes]."""
        logits: Tensor = self.head(torch.tanh(self.hidden(self.embedding(x).flatten(1))))
        return logits


DIRICHLET = {"partition": "dirichlet", "alpha": 0.1, "clients": 20}
MLP = "an MLP with 100 hidden units"
SETTINGS = {
    s.name: s
    for s in (
        Setting(
            "mnist-dirichlet",
            "MNIST, Dirichlet(0.1), 20 clients",
            lambda: thin(weft.load("mnist"), 2500, 2000),
            DIRICHLET,
            f"2,500 + 2,000 of 60,000 + 10,000 images; {MLP}",
        ),
        Setting(
            "fashion-dirichlet",
            "Fashion-MNIST, Dirichlet(0.1), 20 clients",
            lambda: thin(weft.load("fashion-mnist"), 2500, 2000),
            DIRICHLET,
            f"2,500 + 2,000 of 60,000 + 10,000 images; {MLP}",
        ),
        Setting(
            "mnist-pathological",
            "MNIST, two labels for each of 20 clients",
            lambda: thin(weft.load("mnist"), 2500, 2000),
            {"partition": "pathological", "labels_per_client": 2, "clients": 20},
            f"2,500 + 2,000 of 60,000 + 10,000 images; {MLP}",
        ),
        Setting(
            "har-person",
            "HAR, 10 people",
            lambda: weft.load("har"),
            {"partition": "natural", "clients": 10},
            f"10 of 30 people; {MLP} on the raw window",
        ),
        Setting(
            "ag-news-dirichlet",
            "AG News, Dirichlet(1), 20 clients",
            lambda: thin(weft.load("ag-news", length=32, vocabulary=2000), 3000, 1520),
            {"partition": "dirichlet", "alpha": 1.0, "clients": 20},
            "3,000 + 1,520 of 120,000 + 7,600 items, 32 words each of the 2,000 most frequent",
            model="fasttext",
            rates=(0.1, 0.3, 1.0),
        ),
        Setting(
            "shakespeare-role",
            "Shakespeare, next character, 10 roles",
            next_character,
            {"partition": "natural"},
            "10 of 638 roles, 500 places of each; the character after 10, by an MLP, instead of an LSTM over 80",
            model="next-character",
        ),
        Setting(
            "digits-domain",
            "Digits, MNIST and USPS as domains, 10 clients",
            lambda: thin(weft.load("digits"), 2500, 2000),
            {"partition": "domain", "clients": 10},
            f"2,500 + 2,000 of 14,582 + 4,014 images; {MLP}",
        ),
        Setting(
            "cifar10-dirichlet",
            "CIFAR-10, Dirichlet(0.1), 20 clients",
            lambda: weft.load("cifar10"),
            DIRICHLET,
            f"5,000 + 1,000 of 50,000 + 10,000 images; {MLP} instead of the 4-layer CNN",
        ),
    )
}


@functools.lru_cache(maxsize=2)
def data(name: str) -> FederatedData:
    """The examples of a setting, divided among its clients."""
    return divided(SETTINGS[name])


def divided(setting: Setting) -> FederatedData:
    """The same, of a setting that may have been changed."""
    return weft.federate(setting.source(), validation=VALIDATION, **setting.division)


@functools.lru_cache(maxsize=1)
def network(name: str) -> str | Net:
    """The network of a setting: by name where the package has it."""
    setting = SETTINGS[name]
    if setting.model != "next-character":
        return setting.model
    source = data(name).source
    return Net.from_module(lambda: NextCharacter(source.vocabulary, source.classes), "head", classes=source.classes)
