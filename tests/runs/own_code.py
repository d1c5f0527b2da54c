"""What a user may have written: data modules, methods, callbacks and networks, some with faults."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytorch_lightning as pl
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from ickd_pl.strategies import KD  # type: ignore[attr-defined]


class OwnData(pl.LightningDataModule):
    """Noise with labels; ``kind`` says what is wrong with it."""

    num_classes = 10

    def __init__(self, kind: str = "good", count: int = 12, batch_size: int = 4) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.kind, self.count, self.batch_size = kind, count, batch_size

    def train_dataloader(self) -> Any:
        image, label = torch.randn(self.count, 3, 32, 32), torch.arange(self.count) % 10
        if self.kind == "grey":
            image = image[:, :1]
        if self.kind == "uint8":
            image = image.byte()
        if self.kind == "late label":
            label[-1] = 12
        if self.kind == "pillow":
            return DataLoader([(Image.new("RGB", (32, 32)), 1)] * 8, self.batch_size, num_workers=1)
        if self.kind == "sizes":
            return DataLoader([(torch.zeros(3, 32, 32 + i), 1) for i in range(8)], self.batch_size)
        return DataLoader(TensorDataset(image, label), self.batch_size)

    def val_dataloader(self) -> Any:
        loaders = [self.train_dataloader()] * 2
        return loaders if self.kind == "two loaders" else loaders[0]


class NoTraining(pl.LightningDataModule):
    num_classes = 10


@dataclass(eq=False)
class WrongLoss(KD):
    def loss(self, *_: Any) -> Tensor:
        raise ValueError("a fault of the loss")


class WrongLog(pl.Callback):
    """Lightning refuses what this logs: the fault is here."""

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        pl_module.log("pair", torch.zeros(2))


class WrongStart(pl.Callback):
    def __init__(self) -> None:
        {}["nothing"]


class OwnNorm(nn.Sequential):
    """A batch norm on a vector, for which a batch of one image is too small."""

    def __init__(self) -> None:
        pool = nn.AdaptiveAvgPool2d(1)
        super().__init__(nn.Conv2d(3, 4, 3), pool, nn.Flatten(), nn.BatchNorm1d(4), nn.Linear(4, 10))
