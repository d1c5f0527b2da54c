"""How alike two networks are: correlation matrices of channels and of class logits, averaged over images."""

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

# Matrix entries that are held at once: the matrices of a batch of 2,048 channels would take gigabytes.
ENTRIES_AT_ONCE = 2**24
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


# -- tensors in, matrices out ------------------------------------------------------------------------------------------


def mean_channel_correlation(maps: Tensor) -> Tensor:
    """Inter-channel correlation as ICKD's loss sees it, averaged over images.

    Of every image the Gram matrix of the channels over all positions, ``f f^T``, each row of unit length (see
    :func:`ickd_pl.strategies.ickd.channel_correlation`); then the mean. Rows of unit length make it unsymmetric.

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
    return sum(float(ickd_loss(ours, theirs)) * len(ours) for ours, theirs in parts) / len(student)


def logit_correlation(logits: Tensor) -> Tensor:
    """Pearson's correlation of every two classes' logits over images, as figures on logits show it (CRD, ICLR 2020).

    Args:
        logits: shape (N, K), N at least 2.

    Returns:
        Shape (K, K), float64, symmetric, entries from -1 to 1. A class whose logit never changes has 0 everywhere.

    Raises:
        UserError: fewer than two images.
    """
    check_shapes("logit_correlation", ("logits", logits, "N K"))
    if len(logits) < 2:
        raise UserError(f"logit_correlation: a correlation needs at least 2 images, got {len(logits)}")
    values = logits.double()
    # An exact mean leaves exact zeros of a constant column; what rounding leaves is no correlation.
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
    """An order of the channels in which alike ones stand together, so that a picture of the matrix shows its blocks.

    The channels are sorted by the second eigenvector of the normalised graph Laplacian, with the symmetric part of the
    matrix as weights (Atkins, Boman, Hendrickson: A spectral algorithm for seriation, 1998). Channels that are alike to
    none (all zero, dead after their ReLU) come last. No distance depends on it.

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
    # An eigenvector's sign means nothing: the same picture on every machine begins with the busier end.
    low, high = second < 0, second > 0
    if degree[alive][low].sum() < degree[alive][high].sum():
        second = -second
    return torch.cat([alive[second.argsort(stable=True)], dead])


def _parts(maps: Tensor) -> tuple[Tensor, ...]:
    return torch.split(maps, max(1, ENTRIES_AT_ONCE // maps.shape[1] ** 2))


# -- networks in -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Subject:
    """A student, and what brings its last map to the teacher's channels.

    Attributes:
        net: the network, in eval mode.
        adapter: (B, C, H, W) to (B, C', H, W), in eval mode; None shows the student's own channels.
    """

    net: FeatureNet | HookedNet
    adapter: nn.Module | None = None


@dataclass(frozen=True)
class View:
    """What was seen of a network.

    Attributes:
        channels: (C, C), :func:`mean_channel_correlation` of the map that enters the pooling (of the adapter's map).
        classes: (K, K), :func:`logit_correlation`.
        loss: :func:`mean_ickd_loss` with the teacher's maps; None of the teacher, and where channel counts differ.
    """

    channels: Tensor
    classes: Tensor
    loss: float | None = None


def compare(
    images: Iterable[Tensor], teacher: FeatureNet | HookedNet, students: Mapping[str, Subject]
) -> tuple[View, dict[str, View]]:
    """Look at a teacher and its students on the same images, once.

    Args:
        images: batches, each (B, 3, H, W), normalised; together at least 2 images.
        teacher: in eval mode.
        students: by a name of the caller's.

    Returns:
        The teacher's view, and the students' by their names.

    Raises:
        UserError: fewer than two images.
    """
    everyone: dict[str | None, Subject] = {None: Subject(teacher)}
    everyone.update(students)
    count = 0
    channels: dict[str | None, Tensor] = {}
    logits: dict[str | None, list[Tensor]] = {name: [] for name in everyone}
    losses: dict[str | None, float | None] = dict.fromkeys(everyone)
    with torch.no_grad():
        for batch in images:
            reference: Tensor | None = None
            for name, subject in everyone.items():
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
        for name in everyone
    }
    return views[None], {name: views[name] for name in students}


def _over(total: float | None, count: int) -> float | None:
    return None if total is None else total / count


def recalibrate_batch_norm(modules: Iterable[nn.Module], batches: Iterable[Tensor], subject: Subject) -> None:
    """Re-estimate BatchNorm statistics from images, for networks that were never trained: they start at 0 and 1.

    Only the statistics change: plain means over the batches. Modes are put back.

    Args:
        modules: whose batch norms are set; parts of the subject.
        batches: normalised images, each (B, 3, H, W).
        subject: what the images pass.
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
