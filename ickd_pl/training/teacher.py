"""What has to be true of a teacher before a student learns from it: its weights are read, its accuracy is enough."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.utilities import rank_zero_info
from torch import nn

from ickd_pl.data.batch import as_batch
from ickd_pl.errors import UserError
from ickd_pl.training.metrics import accuracies
from ickd_pl.weights import load_weights


def check_floor_value(floor: float | None) -> None:
    """Raise :class:`UserError` where the floor is no percentage; 0.7 for 70 percent would never refuse anything."""
    if floor is not None and not (floor == 0 or 1 < floor <= 100):
        raise UserError(f"teacher_floor: expected percent above 1 and up to 100, such as 70, got {floor}")


def read_teacher(net: nn.Module, name: str, path: str | None) -> None:
    """Read a named teacher's weights.

    Raises:
        UserError: no file was named, or it is missing, damaged or of another network; the message has the command that
            makes one.
    """
    if path is None:
        raise UserError(f"teacher {name} has no weights: {_how_to_get(name)}")
    if not Path(path).exists():
        raise UserError(f"teacher {name}: weights file {path} does not exist: {_how_to_get(name)}")
    load_weights(net, path, name)


def _how_to_get(name: str) -> str:
    return (
        f"for CIFAR-100 get it with `teachers fetch {name}` where `teachers list` has it; else "
        f"train it with `fit --config configs/base.yaml --model.student {name}` on the same data and give its "
        f"checkpoints/last.ckpt as --model.teacher_weights (in Python: teacher=load_teacher({name!r}, FILE))"
    )


def check_floor(module: Any, floor: float) -> None:
    """Measure the teacher once, on the images that every epoch is evaluated on, before the first step.

    Args:
        module: a :class:`ickd_pl.DistillationModule` in its trainer's ``fit``, with the evaluation's loader set up.
        floor: top-1 accuracy in percent.

    Raises:
        UserError: the teacher is below the floor, or there are no images to measure it on.
    """
    trainer, name = module.trainer, module.teacher_name
    evaluation = trainer.fit_loop.epoch_loop.val_loop
    # private: lightning evaluation_loop._data_source
    if trainer.val_dataloaders is None and evaluation._data_source.is_defined():
        # Lightning sets them up here only where the first epoch is evaluated.
        trainer.validating = True
        evaluation.setup_data()
        trainer.training = True
    loader = trainer.val_dataloaders
    if not hasattr(loader, "__iter__") or isinstance(loader, dict | list | tuple):
        raise UserError(
            f"teacher_floor: there are no images to measure the teacher {name} on: give one evaluation loader "
            "(val_dataloaders), leave the trainer's limits on validation alone, or leave the floor out"
        )
    metric = accuracies(module.num_classes)["acc1"].to(module.device)
    precision = trainer.precision_plugin
    with torch.no_grad(), precision.forward_context():
        for raw in loader:
            batch = as_batch(precision.convert_input(trainer.strategy.batch_to_device(raw, dataloader_idx=0)))
            keep = batch.index >= 0
            metric.update(module.teacher(batch.image)[keep].float(), batch.label[keep])
    # torchmetrics sums over the ranks.
    found = 100 * float(metric.compute())
    split = getattr(trainer.datamodule, "eval_split", "val")
    if found < floor:
        raise UserError(
            f"teacher {name} reaches {found:.2f} percent on the {split} images, below model.teacher_floor {floor:g}: "
            "is it trained, on these data and with their normalisation? Give better weights, or lower the floor"
        )
    rank_zero_info(f"teacher {name}: {found:.2f} percent on the {split} images (floor {floor:g})")
