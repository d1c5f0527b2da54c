"""Continue a run with another rate, momentum, weight decay or schedule than its checkpoint has."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl


class GivenRecipe(pl.Callback):
    """Trains with the module's rate, momentum, weight decay and schedule instead of those in the checkpoint."""

    def __init__(self) -> None:
        self._lr: float | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        module: Any = pl_module
        options = {name: value for name, value in module.parameter_group().items() if name != "params"}
        for scheduler in (config.scheduler for config in trainer.lr_scheduler_configs):
            schedule: Any = scheduler
            schedule.base_lrs = [options["lr"]] * len(schedule.base_lrs)
            for group, factor in zip(schedule.optimizer.param_groups, schedule.lr_lambdas, strict=True):
                self._lr = options["lr"] * factor(schedule.last_epoch)
                group.update({**options, "initial_lr": options["lr"], "lr": self._lr})

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if self._lr is not None:  # the row of an epoch that the checkpoint was in the middle of
            pl_module.in_force["lr"], self._lr = self._lr, None
