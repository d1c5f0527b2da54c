"""A student of somebody else's that draws random numbers of every kind while it trains."""

from __future__ import annotations

import random

import numpy as np
from torch import Tensor, nn

LAYERS = "{stem: a, stages: [a, b], final: b, pooled: drop:in}"


class Noisy(nn.Module):
    """Two convolutions with dropout and batch norm, whose input is scaled by numbers of Python and of NumPy."""

    def __init__(self, width: int = 8, num_classes: int = 10) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, width, 3, 2, 1)
        self.norm = nn.BatchNorm2d(width)
        self.b = nn.Conv2d(width, 16, 3, 2, 1)
        self.drop = nn.Dropout(0.3)
        self.fc = nn.Linear(16, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            x = x * (0.9 + 0.1 * random.random() + 0.1 * float(np.random.rand()))
        out: Tensor = self.fc(self.drop(self.b(self.norm(self.a(x)).relu()).relu().mean((2, 3))))
        return out
