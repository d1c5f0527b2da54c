"""Which images are trained on, and which are split off for validation: the same for every seed of a run."""

from __future__ import annotations

import torch
from torch import Tensor

from ickd_pl.errors import UserError
from ickd_pl.seeding import generator

SPLIT_SEED = 2021
"""Seed of the order in which images go to the validation split and to a subset: the same for every run seed."""


def check_sizes(name: str | None, available: int, num_classes: int, val_size: int, train_size: int | None) -> None:
    """Raise :class:`UserError` where a split or a subset of this size cannot leave an image of every class.

    Args:
        name: of the data set, for the message.
        available: training images before anything is split off.
        num_classes: K.
        val_size: images of the validation split.
        train_size: images to train on; None for all that remain.
    """
    most = available - num_classes
    if not 0 <= val_size <= most:
        raise UserError(
            f"val_size must be between 0 and {most} for {name} ({available} training images, at least one of each of "
            f"the {num_classes} classes stays), got {val_size}."
        )
    left = available - val_size
    if train_size is not None and not num_classes <= train_size <= left:
        raise UserError(
            f"train_size must be between {num_classes} (one image of each class) and {left} (the training images of "
            f"{name} left by val_size {val_size}), got {train_size}. Leave it out for all."
        )


def split_rows(labels: Tensor, val_size: int, train_size: int | None) -> tuple[Tensor, Tensor]:
    """Choose the images to train on and those of the validation split.

    Within each class the images are put into one pseudo-random order that depends on ``SPLIT_SEED`` alone. The
    validation split takes the first ones of every class in proportion to its size, and never its last one. Of what
    remains, ``train_size`` takes the first k of every class (one more of some classes where it does not divide evenly,
    all of a class that has fewer). A smaller subset is part of every larger one with the same ``val_size``.

    Args:
        labels: (N,) int64 of all training images.
        val_size: images of the validation split, at most N minus the number of classes.
        train_size: images to train on; None for all that remain.

    Returns:
        The rows to train on and the validation rows, each sorted ascending, int64.
    """
    shuffled = torch.randperm(len(labels), generator=generator(SPLIT_SEED, "split"))
    by_class = shuffled[torch.argsort(labels[shuffled], stable=True)]
    counts = torch.bincount(labels)
    rank = torch.empty(len(labels), dtype=torch.int64)
    rank[by_class] = torch.arange(len(labels)) - (counts.cumsum(0) - counts)[labels[by_class]]
    size = counts[labels]

    share = torch.where(rank < size - 1, (rank + 0.5) / size, torch.inf)
    in_proportion = shuffled[torch.argsort(share[shuffled], stable=True)]
    val, rest = in_proportion[:val_size], in_proportion[val_size:]
    if train_size is not None:
        left = torch.full((len(labels),), len(labels))
        left[rest] = rank[rest] - torch.bincount(labels[val], minlength=len(counts))[labels[rest]]
        rest = shuffled[torch.argsort(left[shuffled], stable=True)][:train_size]
    return rest.sort().values, val.sort().values
