"""Continue a run of another folder, also with another rate, momentum, weight decay or schedule than it has."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytorch_lightning as pl

from ickd_pl.errors import UserError
from ickd_pl.runs.decide import newest, stored
from ickd_pl.runs.run_folder import RunFolder


def goes_on_from(folder: RunFolder, given: str | Path) -> bool:
    """Whether a folder has a checkpoint of the run that began with a given one: the same command goes on from there.

    Args:
        folder: of the run that is asked for.
        given: a checkpoint in another folder.

    Raises:
        UserError: the folder's run did not begin with it, and would be overwritten.
    """
    found, _ = newest([path for path in (folder.last, folder.previous) if path.is_file()])
    if found is None:
        return False
    if stored(found.record).inputs.get("began") != str(Path(given).resolve()):
        raise UserError(
            f"{folder.path} contains a run that did not begin with {given}: leave --ckpt_path out to go on with it, or "
            "set --trainer.default_root_dir to another folder"
        )
    return True


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
