"""Predictions of a trained network: the loop that measures teachers and writes a benchmark's predictions."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from ickd_pl.data.batch import as_batch
from ickd_pl.errors import UserError
from ickd_pl.training.first_batch import dtype_of
from ickd_pl.training.memory import keep_memory


@torch.no_grad()
def predicted_classes(
    net: nn.Module, loader: Iterable[Any], trainer: pl.Trainer, images: Callable[[Tensor], Tensor] | None = None
) -> tuple[Tensor, Tensor]:
    """Predicted and true classes of a loader's images, each (N,) int64 on the CPU; under DDP, this rank's share.

    Args:
        net: maps normalised images (B, 3, H, W) to logits (B, K); in eval mode. Moved to the trainer's device and
            precision.
        loader: yields what :func:`ickd_pl.data.batch.as_batch` accepts; padding (index -1) is left out.
        trainer: gives the device and precision; may be in the middle of ``fit``, or new.
        images: changes a batch of images (B, 3, H, W) before the network sees it; None: nothing does.
    """
    precision, strategy = trainer.precision_plugin, trainer.strategy
    keep_memory(strategy.root_device)
    net = precision.convert_module(net.to(strategy.root_device))
    found: list[Tensor] = []
    with precision.forward_context():
        for raw in loader:
            batch = as_batch(precision.convert_input(strategy.batch_to_device(raw)), dtype_of(net))
            image = batch.image if images is None else images(batch.image)
            found.append(torch.stack([net(image).float().argmax(1), batch.label, batch.index]))
    # The host waits for the device once, and not for each batch.
    predicted, labels, index = torch.cat(found, 1).cpu() if found else torch.zeros(3, 0, dtype=torch.long)
    return predicted[index >= 0], labels[index >= 0]


def accuracy(
    net: nn.Module, loader: Iterable[Any], trainer: pl.Trainer, images: Callable[[Tensor], Tensor] | None = None
) -> float:
    """Top-1 accuracy in % over the images of all ranks; arguments as for :func:`predicted_classes`.

    Raises:
        UserError: there are no images.
    """
    predicted, labels = predicted_classes(net, loader, trainer, images)
    own = torch.tensor([int((predicted == labels).sum()), len(labels)], device=trainer.strategy.root_device)
    hits, count = map(int, torch.as_tensor(trainer.strategy.reduce(own, reduce_op="sum")))
    if not count:
        raise UserError("there are no images to measure a network on")
    return 100 * hits / count
