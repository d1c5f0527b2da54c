"""Sums and accuracies of training and evaluation, accumulated without synchronising the device."""

from __future__ import annotations

import math

import pytorch_lightning as pl
import torch
from torch import Tensor
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy

from ickd_pl.data.batch import Batch
from ickd_pl.errors import NonFiniteLoss


class TrainSums:
    """Loss terms, correct predictions and images of an epoch, summed on the device.

    Calling ``self.log`` in every step would take longer than a student's step on a GPU.
    """

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Reset the sums for a new epoch."""
        self._sums = torch.zeros(0)
        self._names: list[str] = []

    @torch.no_grad()
    def add(self, total: Tensor, terms: dict[str, Tensor], logits: Tensor, batch: Batch) -> None:
        """Add a batch; padding (index -1) does not count."""
        real = batch.index >= 0
        count, hits = real.sum(), ((logits.argmax(1) == batch.label) & real).sum()
        values = torch.stack([value.detach().float() for value in (total, *terms.values())])
        row = torch.cat([values * count, torch.stack([hits, count]).float()])
        self._sums = self._sums + row if self._names else row
        self._names = ["loss/total", *(f"loss/{name}" for name in terms)]

    def bad(self) -> list[str]:
        """Names of the terms that are infinite or NaN; synchronises the device."""
        values = self._sums.tolist()
        return [name for name, value in zip(self._names, values, strict=False) if not math.isfinite(value)]

    def check_finite(self, epoch: int, step: int) -> None:
        """Raise if a loss is infinite or NaN; synchronises the device.

        Raises:
            NonFiniteLoss: a loss is; the message names the terms.
        """
        if bad := self.bad():
            raise NonFiniteLoss(
                f"{', '.join(bad)} became infinite or NaN in epoch {epoch}, at or before step {step}: lower model.lr "
                "or the method's weight; the last checkpoint is from before that"
            )

    def means(self, trainer: pl.Trainer) -> dict[str, float]:
        """Means over the images of all ranks: ``loss/...``, and ``train/acc1`` in %."""
        sums = trainer.strategy.reduce(self._sums, reduce_op="sum")
        *losses, hits, count = torch.as_tensor(sums).tolist()
        means = {name: value / count for name, value in zip(self._names, losses, strict=True)}
        return {**means, "train/acc1": 100 * hits / count}


class Accuracies(MetricCollection):
    """Top-1 accuracy ``acc1`` and, for more than 5 classes, top-5 ``acc5``, over the images of all ranks."""

    def __init__(self, num_classes: int) -> None:
        top = {"acc1": 1, "acc5": 5} if num_classes > 5 else {"acc1": 1}
        super().__init__(
            {
                name: MulticlassAccuracy(num_classes, top_k=k, average="micro", validate_args=False)
                for name, k in top.items()
            }
        )

    def count(self, logits: Tensor, batch: Batch) -> None:
        """Add a batch with its logits, (B, K); padding (index -1) does not count."""
        real = batch.index >= 0
        self.update(logits[real].float(), batch.label[real])

    def percentages(self) -> dict[str, float]:
        """Accuracies in % since the last call; resets the metrics."""
        values = {name: 100 * float(value) for name, value in self.compute().items()}
        self.reset()
        return values
