"""A character LSTM (Hochreiter and Schmidhuber 1997), each layer one operator.

``nn.LSTM`` has no rule for many clients at once. Parameters are laid out as there: gates input, forget, cell, output.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from weft.models.recurrence import lstm


class Cell(nn.Module):
    """One layer of an LSTM over a sequence."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.width = width
        bound = 1 / math.sqrt(width)
        self.w_x = nn.Parameter(torch.empty(4 * width, inputs).uniform_(-bound, bound))
        self.w_h = nn.Parameter(torch.empty(4 * width, width).uniform_(-bound, bound))
        self.b = nn.Parameter(torch.empty(4 * width).uniform_(-bound, bound))

    def forward(self, x: Tensor) -> Tensor:
        """x: [batch, time, inputs]; returns [batch, time, width]."""
        return lstm(x, self.w_x, self.w_h, self.b, keep=self.training)


class CharacterLSTM(nn.Module):
    """Embedding of 8, two layers of 256, a head at every position (McMahan et al. 2017; Caldas et al. 2018)."""

    def __init__(self, vocabulary: int, classes: int, width: int = 256, layers: int = 2) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, 8)
        self.layers = nn.Sequential(*(Cell(8 if i == 0 else width, width) for i in range(layers)))
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """x: tokens [batch, time]; returns logits [batch, time, classes]."""
        logits: Tensor = self.head(self.layers(self.embedding(x)))
        return logits
