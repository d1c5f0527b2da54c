"""What has to be true of a teacher before a student learns from it: its weights are read, its accuracy is enough."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.utilities import rank_zero_info
from torch import nn

from ickd_pl.errors import UserError
from ickd_pl.training.evaluation import accuracy
from ickd_pl.weights import load_weights


def check_floor_value(floor: float | None) -> None:
    """Raise :class:`UserError` where the minimum is no percentage; 0.7 for 70 percent would never refuse anything."""
    if floor is not None and not (floor == 0 or 1 < floor <= 100):
        raise UserError(f"teacher_floor: expected percent above 1 and up to 100, such as 70, got {floor}")


class TeacherWeights:
    """Where a teacher's weights are, and whether the network has them.

    Args:
        name: the teacher's, for messages.
        path: file of the weights.
        ready: the network was handed over trained; nothing is read.
    """

    def __init__(self, name: str | None, path: str | None, ready: bool) -> None:
        self.name, self.path, self.ready = name, path, ready

    def read_into(self, net: nn.Module) -> None:
        """Read the weights, unless the network has them.

        Raises:
            UserError: no file was named, or it is missing, damaged or of another network; the message has the command
                that makes one.
        """
        if self.ready:
            return
        if self.path is None:
            raise UserError(f"teacher {self.name} has no weights: {self._how_to_get()}")
        if not Path(self.path).exists():
            raise UserError(f"teacher {self.name}: weights file {self.path} does not exist: {self._how_to_get()}")
        load_weights(net, self.path, str(self.name))
        self.ready = True

    def skip(self) -> None:
        """Leave the teacher untrained: a measurement of speed needs no weights."""
        self.ready = True

    def _how_to_get(self) -> str:
        return (
            f"for CIFAR-100 get it with `teachers fetch {self.name}` where `teachers list` has it; else "
            f"train it with `fit --config configs/base.yaml --model.student {self.name}` on the same data and give its "
            f"checkpoints/last.ckpt as --model.teacher_weights (in Python: teacher=load_teacher({self.name!r}, FILE))"
        )


def check_accuracy(net: nn.Module, name: str, minimum: float, trainer: pl.Trainer) -> None:
    """Measure a teacher on the images that every epoch is evaluated on.

    Args:
        net: the teacher.
        name: the teacher's.
        minimum: top-1 accuracy in percent.
        trainer: in its ``fit``, before the first step.

    Raises:
        UserError: the teacher is below the minimum, or there are no images to measure it on.
    """
    found = accuracy(net, _evaluation_loader(trainer, name), trainer)
    split = getattr(trainer.datamodule, "eval_split", "val")  # type: ignore[attr-defined]
    if found < minimum:
        raise UserError(
            f"teacher {name} reaches {found:.2f} percent on the {split} images, below model.teacher_floor {minimum:g}: "
            "is it trained, on these data and with their normalisation? Give better weights, or lower the floor"
        )
    rank_zero_info(f"teacher {name}: {found:.2f} percent on the {split} images (floor {minimum:g})")


def _evaluation_loader(trainer: pl.Trainer, name: str) -> Any:
    """What every epoch is evaluated on. Lightning has it before the first step only where it evaluates epoch 1."""
    loader: Any = trainer.val_dataloaders
    data: Any = trainer.datamodule  # type: ignore[attr-defined]
    shows = data is not None and type(data).val_dataloader is not pl.LightningDataModule.val_dataloader
    if loader is None and shows and trainer.limit_val_batches != 0:
        loader = data.val_dataloader()
    if not hasattr(loader, "__iter__") or isinstance(loader, dict | list | tuple):
        raise UserError(
            f"teacher_floor: there are no images to measure the teacher {name} on: give a data module with one "
            "evaluation loader, or one loader (val_dataloaders) and evaluate the first epoch; leave the trainer's "
            "limits on validation alone; or leave the floor out"
        )
    return loader
