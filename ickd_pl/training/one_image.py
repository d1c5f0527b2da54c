"""Training batches of a single image, on which batch norm fails where a map is 1x1: noticed before the first step."""

from __future__ import annotations

from copy import deepcopy
from typing import Any, Protocol

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.seed import isolate_rng
from torch import nn
from torch.utils.data import DataLoader

from ickd_pl.data.batch import Batch
from ickd_pl.data.loader import TensorLoader
from ickd_pl.errors import UserError
from ickd_pl.models.base import FeatureNet
from ickd_pl.models.features import Features
from ickd_pl.models.hooked import HookedNet
from ickd_pl.strategies import LossStrategy
from ickd_pl.training.first_batch import dtype_of, samples


class TrainedModule(Protocol):
    """What is read of a :class:`~ickd_pl.DistillationModule`."""

    student: FeatureNet | HookedNet
    teacher: FeatureNet | HookedNet | None
    student_name: str
    strategies: list[LossStrategy]

    @property
    def hparams(self) -> Any: ...

    @property
    def needs_preact(self) -> bool: ...

    @property
    def device(self) -> Any: ...

    @property
    def trainer(self) -> Any: ...

    def adapter_of(self, strategy: LossStrategy) -> nn.Module | None: ...


def check_one_image(module: TrainedModule) -> None:
    """Refuse a run in which a rank gets a single image in some step and a batch norm cannot use it.

    The rule: a batch of one image is fine as long as every batch norm in training sees more than one value per channel,
    which depends on the networks, the methods and the size of the images. This is tried on copies, only where the
    loader will give such a batch.

    Raises:
        UserError: with the numbers, and what can be changed.
    """
    found = _single(module.trainer)
    if found is None:
        return
    where = _failing(module)
    if where is not None:
        why, advice = found
        raise UserError(
            f"{why}, and batch norm in {where} cannot train on a single image of this size (it needs more than one "
            f"value per channel): {advice}"
        )


def _single(trainer: pl.Trainer) -> tuple[str, str] | None:
    """Which training batch has a single image on some rank, and what can be changed; None where none has."""
    loader: Any = trainer.train_dataloader
    ranks = 1
    if isinstance(loader, TensorLoader):
        images, size, ranks, rest = len(loader.labels), loader.batch_size, loader.world_size, True
        advice = "choose another batch_size" + (" or fewer devices" if ranks > 1 else " or train_size")
    elif isinstance(loader, DataLoader) and loader.batch_size is not None:
        try:
            images, size, rest = len(loader.sampler), loader.batch_size, not loader.drop_last  # type: ignore[arg-type]
        except TypeError:  # the images of a stream are not counted
            return None
        advice = "choose another batch_size, or drop_last=True in its DataLoader"
    else:
        return None
    where, what = (f" on {ranks} ranks", "has one image for a rank") if ranks > 1 else ("", "is a single image")
    if size < 2 * ranks:
        return f"a training batch of {size}{where} {what}", advice
    last = images % size
    # With a limit the last batch may never come.
    if rest and 0 < last < 2 * ranks and trainer.num_training_batches >= len(loader):
        return f"the last training batch, {last} of {images} images in batches of {size}{where}, {what}", advice
    return None


def _failing(module: TrainedModule) -> str | None:
    """The student or the method whose batch norm fails on one image; None if none does, or it cannot be tried."""
    parts = [module.student, *(a for s in module.strategies if (a := module.adapter_of(s)) is not None)]
    ranks = module.trainer.world_size
    if ranks > 1 and any(isinstance(m, nn.SyncBatchNorm) for part in parts for m in part.modules()):
        return None  # it counts the images of all ranks
    image = torch.zeros(1, 3, *_image_size(module), device=module.device, dtype=dtype_of(module.student))
    batch = Batch(image, *torch.zeros(2, 1, dtype=torch.long, device=module.device))
    with isolate_rng(), torch.no_grad(), module.trainer.precision_plugin.forward_context():
        where = f"student {module.student_name}"
        try:
            student = deepcopy(module.student).train().features(image, preact=module.needs_preact)
            # Some methods communicate in their loss, which every rank would have to do.
            if module.teacher is not None and ranks == 1:
                teacher = module.teacher.features(image, preact=module.needs_preact)
                for strategy in module.strategies:
                    where = type(strategy).__name__
                    _try(strategy, module.adapter_of(strategy), student, teacher, batch)
        except Exception as error:
            # private: torch message "Expected more than 1 value per channel"
            return where if str(error).startswith("Expected more than 1 value per channel") else None
    return None


def _image_size(module: TrainedModule) -> tuple[int, ...]:
    """Height and width of the training images: those of the loader where they can be seen."""
    loader = module.trainer.train_dataloader
    batch = loader.batch(0, 0) if isinstance(loader, TensorLoader) else next(samples(loader), None)
    image = batch[0] if isinstance(batch, list | tuple) else None
    if isinstance(image, torch.Tensor) and image.dim() == 4:
        return tuple(image.shape[2:])
    return (module.hparams["image_size"],) * 2


def _try(strategy: LossStrategy, adapter: nn.Module | None, student: Features, teacher: Features, batch: Batch) -> None:
    """The losses of a method with a copy of its adapter, in the modes of its stages."""
    if adapter is None:
        return
    own = deepcopy(adapter).train()
    if strategy.pretrain_epochs:
        strategy.pretrain_loss(student, teacher, batch, own)
    for part in strategy.frozen_in_main(own):
        part.eval()
    strategy.loss(own(student) if strategy.predicts else student, teacher, batch, own)
