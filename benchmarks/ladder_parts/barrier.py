"""Callbacks that hand a ``fit`` over to the referee; named by class path on the command line of each contestant."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl

from ladder_parts.turns import TURNS


class StepBarrier(pl.Callback):
    """Waits between training steps, so that a turn holds everything of a step: loader, loops, logging, optimizer."""

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any) -> None:
        TURNS.step()


class EpochBarrier(pl.Callback):
    """Waits between epochs, for epochs of one training step and a whole evaluation."""

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        TURNS.step()
