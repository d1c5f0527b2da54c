"""The values of the first batch, looked at once: later steps do not wait for the device."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import torch
from pytorch_lightning.utilities import rank_zero_warn
from pytorch_lightning.utilities.seed import isolate_rng
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

from ickd_pl.data.batch import Batch, as_batch
from ickd_pl.errors import UserError
from ickd_pl.models.base import FeatureNet
from ickd_pl.models.build import probe
from ickd_pl.models.hooked import HookedNet
from ickd_pl.strategies import LossStrategy

# Networks with their names.
Networks = Sequence[tuple[FeatureNet | HookedNet, str]]


class Module(Protocol):
    """What is read of a :class:`~ickd_pl.DistillationModule`."""

    student: FeatureNet | HookedNet
    teacher: FeatureNet | HookedNet | None
    student_name: str
    teacher_name: str | None
    strategies: list[LossStrategy]
    first_batch: FirstBatch

    @property
    def hparams(self) -> Any: ...

    @property
    def trainer(self) -> Any: ...


class FirstBatch:
    """Checks the values of one batch for each stage of a fit or an evaluation.

    Args:
        num_classes: K.
        image_size: height and width of the images that the networks were tried on.
    """

    def __init__(self, num_classes: int, image_size: int) -> None:
        self.num_classes, self.image_size = num_classes, image_size
        self._seen: set[str] = set()

    def forget(self) -> None:
        """Check again: a new fit or evaluation begins."""
        self._seen.clear()

    def has_seen(self, stage: str) -> bool:
        """Whether the stage's first batch has been checked."""
        return stage in self._seen

    def check(self, batch: Batch, stage: str, networks: Networks = (), num_samples: int | None = None) -> Batch:
        """Raise for values that no run can use, in the first batch of a stage; wait for the device only then.

        Args:
            batch: a batch whose shapes and types fit.
            stage: ``training``, ``evaluation`` or ``prediction``.
            networks: those that will read the images, with their names.
            num_samples: number of training images where a method remembers each of them, which limits the index.

        Returns:
            The batch.

        Raises:
            UserError: images that are not finite or that a network does not take, a label that is no class, or an
                index that is no training image.
        """
        if stage in self._seen:
            return batch
        self._seen.add(stage)
        if stage != "prediction":  # which reads no label
            _check_range("label", batch.label, 0, self.num_classes - 1, stage, "classes")
        if num_samples is not None:
            # -1 is padding.
            _check_range("index", batch.index, -1, num_samples - 1, stage, "training images, num_samples")
        _check_images(batch.image, stage)
        size = tuple(batch.image.shape[-2:])
        if size != (self.image_size, self.image_size):
            for net, name in networks:
                probe(net, name, size, preact=False)
        return batch


def _check_range(name: str, values: Tensor, low: int, high: int, stage: str, what: str) -> None:
    least, most = (int(bound) for bound in values.aminmax())
    if least < low or most > high:
        wrong = least if least < low else most
        raise UserError(
            f"expected batches with {name} from {low} to {high} ({high + 1} {what}), got {wrong} in the first batch of "
            f"{stage}"
        )


def _check_images(image: Tensor, stage: str) -> None:
    if not bool(image.isfinite().all()):
        raise UserError(f"expected batches with finite images, got NaN or infinity in the first batch of {stage}")
    low, high = image.aminmax()
    # Normalised images have neither only whole numbers nor such large ones.
    if float(low) >= 0 and 16 < float(high) <= 255 and bool((image == image.round()).all()):
        rank_zero_warn(
            f"The images of the first batch of {stage} are whole numbers up to {float(high):g}: they look like pixels "
            "that were not normalised. Divide by 255, subtract the mean and divide by the standard deviation."
        )


def dtype_of(net: nn.Module) -> torch.dtype:
    """The floating-point type of a network's weights, which its images must have."""
    return next((p.dtype for p in net.parameters() if p.is_floating_point()), torch.get_default_dtype())


def training_batch(module: Module, raw: Any) -> Batch:
    """Convert what a training loader yields to a :class:`Batch`.

    Raises:
        UserError: it is not a batch, lacks the indices that a method needs, or the first one has impossible values.
    """
    needing = [type(s).__name__ for s in module.strategies if s.needs_index]
    batch = as_batch(raw, dtype_of(module.student), needing)
    if module.first_batch.has_seen("training"):
        return batch
    networks = [(module.student, module.student_name)]
    networks += [] if module.teacher is None else [(module.teacher, str(module.teacher_name))]
    return module.first_batch.check(batch, "training", networks, module.hparams["num_samples"] if needing else None)


def check_evaluation(module: Module) -> None:
    """Before training: check a sample of each evaluation loader, whose first batch comes only after an epoch.

    Loaders with workers are left out: what a data set opens in this process, its workers might not be able to share.

    Raises:
        UserError: see :func:`ickd_pl.data.batch.as_batch` and :meth:`FirstBatch.check`.
    """
    for raw in samples(module.trainer.val_dataloaders):
        check = FirstBatch(module.first_batch.num_classes, module.first_batch.image_size).check
        check(as_batch(raw), "evaluation", [(module.student, module.student_name)])


def samples(loaders: Any) -> Iterator[Any]:
    """A batch of one image from each of torch's loaders, without drawing from any random state."""
    for loader in loaders if isinstance(loaders, list | tuple) else [loaders]:
        if not isinstance(loader, DataLoader) or isinstance(loader.dataset, IterableDataset) or loader.num_workers:
            continue
        with isolate_rng():
            try:
                sample = loader.dataset[0]
                # Without a batch sampler each sample is a batch.
                raw = loader.collate_fn(sample if loader.batch_sampler is None else [sample])
            except Exception:  # what is wrong with the data set will be seen when it is read
                continue
        yield raw
