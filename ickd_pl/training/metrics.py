"""Sums and accuracies of training and evaluation, accumulated without synchronising the device."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor
from torchmetrics import Metric

from ickd_pl.data.batch import Batch
from ickd_pl.errors import UserError
from ickd_pl.training.finite import Finite, first_of, non_finite


class TrainSums:
    """Loss terms, correct predictions and images of an epoch, summed on the device.

    Calling ``self.log`` in every step would take longer than a student's step on a GPU.

    Attributes:
        finite: which terms have been finite.
    """

    def __init__(self) -> None:
        self.finite = Finite()
        self._sums = torch.zeros(0)
        self._names: list[str] = []

    def clear(self) -> None:
        """Reset the sums for a new epoch, in place: captured steps add to them where they were recorded."""
        self._sums.zero_()

    @torch.no_grad()
    def add(
        self, total: Tensor, terms: dict[str, Tensor], logits: Tensor, batch: Batch, step: int | Tensor
    ) -> Tensor | None:
        """Add a batch; padding (index -1) does not count.

        Args:
            total: weighted sum of the terms.
            terms: unweighted, by name.
            logits: (B, K), of the student.
            batch: with the true labels.
            step: number of optimizer steps before this one; in captured steps on the device.

        Returns:
            A factor for the loss: None for 1, or NaN if a term is not finite (see :meth:`Finite.terms`).
        """
        # As few operations as possible: each takes as long as one of a small network's layers.
        real = batch.index >= 0
        hits, count = ((logits.argmax(1) == batch.label) & real).count_nonzero(), real.count_nonzero()
        values = torch.stack([value.float() for value in (total, *terms.values())])
        row = torch.cat([values * count, torch.stack([hits, count])])
        names = ["loss/total", *(f"loss/{name}" for name in terms)]
        if self._names != names:
            self._names, self._sums = names, torch.zeros_like(row)
        self._sums += row
        return self.finite.terms(self._names, values, step)

    def check_finite(self, trainer: pl.Trainer, what: str = "") -> None:
        """Check the terms and gradients watched since the start. Call it on all ranks; it waits for the device.

        Args:
            trainer: in ``fit``.
            what: the member of a pack, for the message.

        Raises:
            NonFiniteLoss: something was infinite or NaN on some rank; the message names the first such step.
        """
        found = gathered(self.finite.bad(), trainer)
        if (first := first_of(found)) is not None:
            rank, bad = first
            raise non_finite(bad, rank, len(found), trainer.current_epoch + 1, what)

    def means(self, trainer: pl.Trainer) -> dict[str, float]:
        """Means over the images of all ranks: ``loss/...``, and ``train/acc1`` in %."""
        sums = trainer.strategy.reduce(self._sums, reduce_op="sum")
        *losses, hits, count = torch.as_tensor(sums).tolist()
        means = {name: value / count for name, value in zip(self._names, losses, strict=True)}
        return {**means, "train/acc1": 100 * hits / count}

    def state(self) -> dict[str, Any]:
        """This rank's sums as plain data."""
        return {"names": list(self._names), "sums": self._sums.tolist()}

    def resume(self, states: Sequence[Mapping[str, Any]], device: torch.device) -> None:
        """Continue from the sum of what :meth:`state` returned."""
        self._names = []
        for state in states:
            sums = torch.tensor(state["sums"], dtype=torch.float32, device=device)
            self._sums = self._sums + sums if self._names else sums
            self._names = list(state["names"])


def weighted(weight: float, term: Tensor) -> Tensor:
    """``weight * term``, without a multiplication by 1, which takes time in both directions."""
    return term if weight == 1 else weight * term


def gathered(value: Any, trainer: pl.Trainer) -> list[Any]:
    """The value of each rank. Call it on all ranks."""
    values: list[Any] = [value]
    if trainer.world_size > 1 and torch.distributed.is_initialized():
        values = values * trainer.world_size
        torch.distributed.all_gather_object(values, value)
    return values


def epoch_state(sums: TrainSums, trainer: pl.Trainer) -> dict[str, Any]:
    """What the metrics of an epoch need to continue in the middle of it, as plain data. Call it on all ranks."""
    return {"ranks": gathered(sums.state(), trainer)}


def resume_epoch(stored: Any, trainer: pl.Trainer) -> TrainSums:
    """The sums with which this rank goes on in an epoch.

    Args:
        stored: as returned by :func:`epoch_state`; None: an epoch begins.
        trainer: in ``fit``.

    Raises:
        UserError: the stored state is damaged.
    """
    sums = TrainSums()
    if stored is None:
        return sums
    try:
        ranks, rank = list(stored["ranks"]), trainer.global_rank
        # With another number of ranks, the first one takes all: their sum counts.
        none = [{**state, "sums": [0.0] * len(state["sums"])} for state in ranks]
        own = [ranks[rank]] if len(ranks) == trainer.world_size else ranks if rank == 0 else none
        sums.resume(own, trainer.strategy.root_device)
    except (TypeError, ValueError, KeyError, IndexError, AttributeError) as error:
        raise UserError(f"the checkpoint's sums of the epoch are damaged ({type(error).__name__})") from error
    return sums


class Accuracies(Metric):
    """Top-1 accuracy ``acc1`` and, for more than 5 classes, top-5 ``acc5``, over the images of all ranks.

    torchmetrics' own accuracies take the padding out, for which the host waits for the device in every batch.
    """

    hits: Tensor
    images: Tensor

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.top = {"acc1": 1, "acc5": 5} if num_classes > 5 else {"acc1": 1}
        self.add_state("hits", torch.zeros(len(self.top), dtype=torch.long), dist_reduce_fx="sum")
        self.add_state("images", torch.zeros((), dtype=torch.long), dist_reduce_fx="sum")

    def update(self, logits: Tensor, batch: Batch) -> None:
        """Add a batch with its logits, (B, K); padding (index -1) does not count."""
        real, logits = batch.index >= 0, logits.float()
        found = [logits.argmax(1, keepdim=True) if k == 1 else logits.topk(k).indices for k in self.top.values()]
        hits = [(classes == batch.label[:, None]).any(1) & real for classes in found]
        # Not in place: reset() may have made them in an evaluation, as inference tensors.
        self.hits = self.hits + torch.stack(hits).sum(1)
        self.images = self.images + real.sum()

    def compute(self) -> Tensor:
        """The parts of the images, float32, in the order of ``top``; 0 without images."""
        return self.hits / self.images.clamp(min=1)

    def percentages(self) -> dict[str, float]:
        """Accuracies in % since the last call; resets the metrics."""
        # torchmetrics makes a number of a tensor with one element.
        values = dict(zip(self.top, self.compute().reshape(-1).tolist(), strict=True))
        self.reset()
        return {name: 100 * value for name, value in values.items()}
