"""Networks and data of somebody else's: random numbers of every kind, torch's own loader, an odd number of images."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from ickd_pl.data import TensorDataModule
from ickd_pl.data.base import Images

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


class Own(pl.LightningDataModule):
    """A data module with torch's loader, which counts its batch per process."""

    num_classes = 10

    def train_dataloader(self) -> DataLoader[Any]:
        images = torch.linspace(-1, 1, 24 * 3 * 32 * 32).reshape(24, 3, 32, 32)
        return DataLoader(TensorDataset(images, torch.arange(24) % 10), batch_size=4)

    val_dataloader = test_dataloader = train_dataloader


class Shuffled(Own):
    """Torch's loader draws the order, and numbers of its own, from the global random state; so do its evaluations."""

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(super().train_dataloader().dataset, batch_size=4, shuffle=True)


class Empty(Own):
    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(TensorDataset(torch.zeros(0, 3, 32, 32), torch.zeros(0).long()), batch_size=4)


class Odd(TensorDataModule):
    """1,001 test images, whose labels depend on the images."""

    name = "odd"
    num_classes = 2
    image_size = 32
    num_available = 40

    def _read(self, split: str) -> Images:
        generator = torch.Generator().manual_seed(len(split))
        images = torch.randint(0, 256, (40 if split == "train" else 1001, 3, 32, 32), generator=generator)
        return Images(images.to(torch.uint8), images[:, 0, 0, 0] % 2)

    def _read_class_names(self) -> list[str]:
        return ["even", "odd"]
