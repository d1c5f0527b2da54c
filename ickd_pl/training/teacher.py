"""Checks of a teacher before distillation: its weights are loaded, its accuracy reaches the minimum."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.utilities import rank_zero_info
from torch import nn

from ickd_pl.errors import UserError
from ickd_pl.training.evaluation import accuracy
from ickd_pl.training.teacher_images import TeacherImages
from ickd_pl.weights import load_weights, weights_file


def check_floor_value(minimum: float | None) -> None:
    """Raise :class:`UserError` if the minimum accuracy is not in %: 0.7 instead of 70 would accept any teacher."""
    if minimum is not None and not (minimum == 0 or 1 < minimum <= 100):
        raise UserError(f"teacher_floor: expected a percentage above 1 and up to 100, such as 70, got {minimum}")


NONE = "none"
"""The word for ``teacher_weights`` of a teacher that is meant to be as it was constructed."""


def check_chosen(model: Mapping[str, Any]) -> None:
    """Check that a teacher given by its class has weights, or is meant to be as it was constructed.

    In Python an object given as teacher may be trained already; one that the command line constructs is not.

    Args:
        model: the module's settings on the command line.

    Raises:
        UserError: neither is set.
    """
    teacher = model.get("teacher")
    if model.get("strategies") and isinstance(teacher, Mapping) and model.get("teacher_weights") is None:
        raise UserError(
            f"teacher {teacher.get('class_path')} has no weights: set --model.teacher_weights FILE, or "
            f"--model.teacher_weights {NONE} to use it as it is constructed"
        )


class TeacherWeights:
    """The weights file of a teacher, and whether it has been loaded.

    Args:
        name: the teacher's name, for messages.
        path: the weights file; ``none``: the network stays as it was constructed.
        given: the network is the user's object, which is taken for trained where no file is set.

    Attributes:
        ready: the weights are loaded.
        images: gives the teacher its images.
    """

    def __init__(self, name: str | None, path: str | None, given: bool) -> None:
        self.name, self.path, self.given = name, path, given
        self.ready = path == NONE or (given and path is None)
        self.images = TeacherImages(None if path == NONE else path)

    def read_into(self, net: nn.Module) -> None:
        """Load the weights, unless that has been done.

        Raises:
            UserError: no file is set, or it is missing, damaged or of another network; the message has the command
                that creates one.
        """
        if self.ready:
            return
        if self.path is None:
            raise UserError(f"teacher {self.name} has no weights: {self._how_to_get()}")
        if not weights_file(self.path).exists():
            raise UserError(f"teacher {self.name}: weights file {self.path} does not exist: {self._how_to_get()}")
        load_weights(net, self.path, str(self.name))
        self.ready = True

    def skip(self) -> None:
        """Leave the teacher untrained: timing needs no weights."""
        self.ready = True
        self.images.ignore_file()

    def is_same(self, other: TeacherWeights, same_object: bool) -> bool:
        """Whether two teachers are the same network with the same weights, also before the weights are read."""
        by_name = self.name == other.name and not (self.given or other.given)
        return (same_object or by_name) and self.path == other.path

    def _how_to_get(self) -> str:
        if self.given:
            return f"give the file of its weights, or teacher_weights {NONE} to use it as it is"
        return (
            f"for CIFAR-100, if `teachers list` shows it, get it with `teachers fetch {self.name}`; else "
            f"train it with `fit --config configs/base.yaml --model.student {self.name}` on the same data and set its "
            f"checkpoints/last.ckpt as --model.teacher_weights (in Python: teacher=load_teacher({self.name!r}, FILE)); "
            f"one that is meant to be untrained needs --model.teacher_weights {NONE}"
        )


def check_accuracy(
    net: nn.Module, name: str, minimum: float, trainer: pl.Trainer, images: TeacherImages | None = None
) -> None:
    """Measure a teacher's accuracy on the images that every epoch is evaluated on.

    Args:
        net: the teacher.
        name: the teacher's name, for messages.
        minimum: top-1 accuracy in %.
        trainer: the trainer, in ``fit`` before the first step.
        images: gives the teacher its images; None: they are as the data normalise them.

    Raises:
        UserError: the teacher is below the minimum, or there are no images to measure it on.
    """
    found = accuracy(net, _evaluation_loader(trainer, name), trainer, images)
    split = getattr(trainer.datamodule, "eval_split", "val")  # type: ignore[attr-defined]
    if found < minimum:
        raise UserError(
            f"teacher {name} reaches {found:.2f} percent on the {split} images, below model.teacher_floor {minimum:g}: "
            "was it trained on these data, with the same normalisation? Set "
            "better weights or model.teacher_normalization, or lower the minimum"
        )
    rank_zero_info(f"teacher {name}: {found:.2f} percent on the {split} images (minimum {minimum:g})")


def _evaluation_loader(trainer: pl.Trainer, name: str) -> Any:
    """The evaluation loader. Before the first step, Lightning has loaded it only if it evaluates epoch 1."""
    loader: Any = trainer.val_dataloaders
    data: Any = trainer.datamodule  # type: ignore[attr-defined]
    has_loader = data is not None and type(data).val_dataloader is not pl.LightningDataModule.val_dataloader
    if loader is None and has_loader and trainer.limit_val_batches != 0:
        loader = data.val_dataloader()
    if not hasattr(loader, "__iter__") or isinstance(loader, dict | list | tuple):
        raise UserError(
            f"teacher_floor: there are no images to measure the teacher {name} on: use a data module with one "
            "evaluation loader, or one loader (val_dataloaders) and evaluate the first epoch; do not set "
            "limit_val_batches to 0; or leave teacher_floor out"
        )
    return loader
