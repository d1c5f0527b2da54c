"""How similar two networks are: correlation matrices of channels and of class logits, averaged over images."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from ickd_pl.errors import UserError
from ickd_pl.models.base import FeatureNet
from ickd_pl.models.features import Features
from ickd_pl.models.hooked import HookedNet
from ickd_pl.strategies.components.shapes import check_shapes
from ickd_pl.strategies.ickd import channel_correlation, ickd_loss

# Matrix entries in memory at once: the matrices of a batch of 2,048 channels would take gigabytes.
ENTRIES_AT_ONCE = 2**24
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


# -- tensors in, matrices out ------------------------------------------------------------------------------------------


def mean_channel_correlation(maps: Tensor) -> Tensor:
    """Inter-channel correlation as ICKD's loss computes it, averaged over images.

    For every image the Gram matrix of the channels over all positions, ``f f^T``, each row of unit length (see
    :func:`ickd_pl.strategies.ickd.channel_correlation`), then the mean. The unit rows make it asymmetric.

    Args:
        maps: feature maps, shape (B, C, H, W).

    Returns:
        Shape (C, C), float64, entries from -1 to 1; from 0 to 1 for maps that have no negative entry.
    """
    check_shapes("mean_channel_correlation", ("maps", maps, "B C H *"))
    total = sum(channel_correlation(part).double().sum(dim=0) for part in _parts(maps))
    return torch.as_tensor(total) / len(maps)


def mean_ickd_loss(student: Tensor, teacher: Tensor) -> float:
    """ICKD's loss, averaged over images: the distance of every image's own two matrices, not of their means.

    Args:
        student: feature maps with the teacher's channel count, shape (B, C, H, W).
        teacher: feature maps, shape (B, C, H', W').
    """
    parts = zip(_parts(student), _parts(teacher), strict=True)
    return sum(float(ickd_loss(s, t)) * len(s) for s, t in parts) / len(student)


def logit_correlation(logits: Tensor) -> Tensor:
    """Pearson correlation of every two classes' logits over images, as in CRD's figures (ICLR 2020).

    Args:
        logits: shape (N, K), N at least 2.

    Returns:
        Shape (K, K), float64, symmetric, entries from -1 to 1. A class with a constant logit has 0 everywhere.

    Raises:
        UserError: fewer than two images.
    """
    check_shapes("logit_correlation", ("logits", logits, "N K"))
    if len(logits) < 2:
        raise UserError(f"logit_correlation: a correlation needs at least 2 images, got {len(logits)}")
    values = logits.double()
    # A constant column must become exact zeros: what rounding leaves of it would correlate.
    centred = values - values.mean(dim=0)
    centred = torch.where(centred.abs().amax(dim=0) > 1e-12 * values.abs().amax(dim=0), centred, 0.0)
    unit = normalize(centred, dim=0, eps=torch.finfo(torch.float64).tiny)
    return (unit.T @ unit).clamp(-1, 1)


def mean_absolute_difference(one: Tensor, other: Tensor) -> float:
    """The mean of ``|one - other|`` over all entries of two matrices of one shape.

    Raises:
        UserError: the shapes differ.
    """
    check_shapes("mean_absolute_difference", ("one", one, "R C"), ("other", other, "R C"))
    return float((one - other).abs().mean())


def likeness_order(matrix: Tensor) -> Tensor:
    """An order of the channels that groups similar ones, so that a picture of the matrix shows its blocks.

    The channels are sorted by the second eigenvector of the normalised graph Laplacian, with the symmetric part of the
    matrix as weights (Atkins, Boman, Hendrickson: A spectral algorithm for seriation, 1998). Channels that are similar
    to none (all zero, dead after their ReLU) come last. No distance depends on the order.

    Args:
        matrix: (C, C).

    Returns:
        (C,) int64, a permutation.
    """
    weights = ((matrix + matrix.T) / 2).double().clamp(min=0).fill_diagonal_(0)
    degree = weights.sum(dim=1)
    alive = torch.nonzero(degree > 1e-9).flatten()
    dead = torch.nonzero(degree <= 1e-9).flatten()
    if len(alive) < 3:
        return torch.cat([alive, dead])
    root = degree[alive].rsqrt()
    likeness = weights[alive][:, alive] * root[:, None] * root
    second = torch.linalg.eigh(likeness).eigenvectors[:, -2] * root
    # An eigenvector's sign is arbitrary: begin with the end of larger degree, so that all machines agree.
    low, high = second < 0, second > 0
    if degree[alive][low].sum() < degree[alive][high].sum():
        second = -second
    return torch.cat([alive[second.argsort(stable=True)], dead])


def _parts(maps: Tensor) -> tuple[Tensor, ...]:
    return torch.split(maps, max(1, ENTRIES_AT_ONCE // maps.shape[1] ** 2))


# -- networks in -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Subject:
    """A student, and the adapter from its last map to the teacher's channels.

    Attributes:
        net: the network, in eval mode.
        adapter: (B, C, H, W) to (B, C', H, W), in eval mode; None: the student's own channels.
    """

    net: FeatureNet | HookedNet
    adapter: nn.Module | None = None


@dataclass(frozen=True)
class View:
    """What :func:`compare` measures on a network.

    Attributes:
        channels: (C, C), :func:`mean_channel_correlation` of the map that enters the pooling (of the adapter's map).
        classes: (K, K), :func:`logit_correlation`.
        loss: :func:`mean_ickd_loss` with the teacher's maps; None for the teacher, and if channel counts differ.
    """

    channels: Tensor
    classes: Tensor
    loss: float | None = None


def compare(
    images: Iterable[Tensor], teacher: FeatureNet | HookedNet, students: Mapping[str, Subject]
) -> tuple[View, dict[str, View]]:
    """Measure a teacher and its students on the same images, in one pass.

    Args:
        images: batches, each (B, 3, H, W), normalised; together at least 2 images.
        teacher: in eval mode.
        students: by any names.

    Returns:
        The teacher's view, and the students' by their names.

    Raises:
        UserError: fewer than two images.
    """
    subjects: dict[str | None, Subject] = {None: Subject(teacher)}
    subjects.update(students)
    count = 0
    channels: dict[str | None, Tensor] = {}
    logits: dict[str | None, list[Tensor]] = {name: [] for name in subjects}
    losses: dict[str | None, float | None] = dict.fromkeys(subjects)
    with torch.no_grad():
        for batch in images:
            reference: Tensor | None = None
            for name, subject in subjects.items():
                features: Features = subject.net.features(batch)
                maps = features.final if subject.adapter is None else subject.adapter(features.final)
                added = mean_channel_correlation(maps) * len(maps)
                channels[name] = channels[name] + added if name in channels else added
                logits[name].append(features.logits.cpu())
                if reference is None:
                    reference = maps
                elif maps.shape[1] == reference.shape[1]:
                    losses[name] = (losses[name] or 0.0) + mean_ickd_loss(maps, reference) * len(maps)
            count += len(batch)
    if count < 2:
        raise UserError(f"correlations need at least 2 images, got {count}")
    views = {
        name: View(channels[name].cpu() / count, logit_correlation(torch.cat(logits[name])), _over(losses[name], count))
        for name in subjects
    }
    return views[None], {name: views[name] for name in students}


def _over(total: float | None, count: int) -> float | None:
    return None if total is None else total / count


def recalibrate_batch_norm(modules: Iterable[nn.Module], batches: Iterable[Tensor], subject: Subject) -> None:
    """Re-estimate BatchNorm statistics from images, for untrained networks, where they are 0 and 1.

    Only the statistics change: plain means over the batches. Modes are restored.

    Args:
        modules: whose batch norms are re-estimated; parts of the subject.
        batches: normalised images, each (B, 3, H, W).
        subject: the network that the images pass through.
    """
    norms = [m for module in modules for m in module.modules() if isinstance(m, BATCH_NORMS)]
    kept = [(norm, norm.training, norm.momentum) for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the plain mean of all batches
        norm.train()
    try:
        with torch.no_grad():
            for batch in batches:
                final = subject.net.features(batch).final
                if subject.adapter is not None:
                    subject.adapter(final)
    finally:
        for norm, mode, momentum in kept:
            norm.momentum = momentum
            norm.train(mode)
