"""Deliberate faults: callbacks for ``--trainer.callbacks+=``, invalid data and damaged files."""

from __future__ import annotations

import os
import resource
import signal
import zipfile
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch

from ickd_pl.data import TensorDataModule
from ickd_pl.data.base import Images


class Stopped(RuntimeError):
    """The run was stopped on purpose."""


class StopBeforeEpoch(pl.Callback):
    """Raise at the start of an epoch (from 0), after the previous epoch's checkpoint has been written."""

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.current_epoch == self.epoch:
            raise Stopped


class KillInEpoch(pl.Callback):
    """Kill the process without any clean-up, after a batch in the middle of an epoch (from 0)."""

    def __init__(self, epoch: int, batch: int = 1) -> None:
        self.epoch = epoch
        self.batch = batch

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.current_epoch == self.epoch and batch_idx == self.batch:
            os.kill(os.getpid(), signal.SIGKILL)


class Pad(pl.Callback):
    """Make every checkpoint so large that writing it takes some time."""

    def __init__(self, megabytes: int = 32) -> None:
        self.pad = torch.zeros(megabytes, 2**20, dtype=torch.uint8)

    def state_dict(self) -> dict[str, Any]:
        return {"pad": self.pad}


class LimitFiles(pl.Callback):
    """Simulate a full disk: from an epoch on (from 0), no file of this process can exceed ``size`` bytes."""

    def __init__(self, epoch: int, size: int) -> None:
        self.epoch = epoch
        self.size = size

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.current_epoch == self.epoch:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # an error, as on a full disk, instead of a signal
            resource.setrlimit(resource.RLIMIT_FSIZE, (self.size, resource.RLIM_INFINITY))


class WrongLabels(TensorDataModule):
    """Two classes, but one image of a split has the label 2."""

    name = "wrong"
    num_classes = 2
    image_size = 32
    num_available = 8

    def __init__(self, wrong: str = "train", batch_size: int = 4, seed: int = 0) -> None:
        self.wrong = wrong
        super().__init__(batch_size=batch_size, seed=seed)

    def _read(self, split: str) -> Images:
        label = torch.arange(8) % 2
        label[3] += split == self.wrong
        return Images(torch.zeros(8, 3, 32, 32, dtype=torch.uint8), label)

    def _read_class_names(self) -> list[str]:
        return ["cat", "dog"]


def damage(path: Path, how: str) -> None:
    """Truncate a file ("empty", "one byte", "50 %", "-1"), or flip a bit of the first tensor in it ("flip")."""
    content = bytearray(path.read_bytes())
    if how == "flip":
        with zipfile.ZipFile(path) as archive:
            (first,) = (member for member in archive.infolist() if member.filename.endswith("/data/0"))
        content[first.header_offset + 30 + len(first.filename) + first.file_size] ^= 64
    else:
        del content[{"empty": 0, "one byte": 1, "50 %": len(content) // 2, "-1": len(content) - 1}[how] :]
    path.write_bytes(content)
