"""Callbacks that stop a run at a chosen place, given by ``--trainer.callbacks+=``."""

from __future__ import annotations

import os
import signal
from typing import Any

import pytorch_lightning as pl


class Stopped(RuntimeError):
    """The run was stopped on purpose."""


class StopBeforeEpoch(pl.Callback):
    """Raise when an epoch (counted from 0) begins: the checkpoint of the one before is written by then."""

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.current_epoch == self.epoch:
            raise Stopped


class KillInEpoch(pl.Callback):
    """Kill the process, with no chance to clean up, after a batch in the middle of an epoch (counted from 0)."""

    def __init__(self, epoch: int, batch: int = 1) -> None:
        self.epoch = epoch
        self.batch = batch

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.current_epoch == self.epoch and batch_idx == self.batch:
            os.kill(os.getpid(), signal.SIGKILL)
