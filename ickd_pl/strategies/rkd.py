"""Relational knowledge distillation (RKD)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize, smooth_l1_loss

from ickd_pl.checks import NonNegativeFloat
from ickd_pl.data.batch import Batch
from ickd_pl.models.features import Features
from ickd_pl.strategies.base import LossStrategy, full_precision
from ickd_pl.strategies.components.shapes import check_shapes


def relative_distances(differences: Tensor) -> Tensor:
    """Distances of all pairs, over the mean distance of two different images.

    Args:
        differences: shape (B, B, D), ``[i, j] = x[j] - x[i]``, for B > 1.

    Returns:
        Shape (B, B), 0 on the diagonal.
    """
    size = len(differences)
    squared = differences.square().sum(dim=2).clamp_min(1e-12)  # (B, B); at 0 the root's slope is infinite
    distances = squared.sqrt() * (1 - torch.eye(size, dtype=squared.dtype, device=squared.device))
    return distances / (distances.sum() / (size * (size - 1)))


def angles(differences: Tensor) -> Tensor:
    """Cosines of the angles at every image i between the directions to images j and k.

    Args:
        differences: shape (B, B, D), ``[i, j] = x[j] - x[i]``.

    Returns:
        Shape (B, B, B); 0 where j or k is i.
    """
    directions = normalize(differences, dim=2)
    return directions @ directions.transpose(1, 2)


@full_precision
def rkd_loss(student: Tensor, teacher: Tensor, distance_weight: float = 25.0, angle_weight: float = 50.0) -> Tensor:
    """Smooth L1 distance of the relative distances of all pairs and of the angles of all triples.

    [0] Park et al., Relational Knowledge Distillation, CVPR 2019, https://arxiv.org/abs/1904.05068
    [1] reference code: HobbitLong/RepDistiller, distiller_zoo/RKD.py

    The differences of all pairs are formed once for both terms; squared distances come from them, not from a Gram
    matrix, which loses half the digits for near neighbours.

    Args:
        student: vectors, shape (B, D).
        teacher: vectors, shape (B, D'). Gradients do not flow into them.
        distance_weight: factor of the distances.
        angle_weight: factor of the angles.

    Returns:
        A scalar, at least float32; 0 for a batch of one, which has no pairs.

    Example:
        >>> import torch
        >>> x = torch.arange(12.0).reshape(4, 3)
        >>> round(rkd_loss(x.sin(), x.cos()).item(), 2)
        0.08
    """
    check_shapes("rkd_loss", ("student", student, "B D *"), ("teacher", teacher, "B D' *"))
    s, t = (x[None, :] - x[:, None] for x in (student.flatten(1), teacher.detach().flatten(1)))  # (B, B, D)
    loss = s.new_zeros(()) + 0 * s.sum()
    if distance_weight and len(s) > 1:
        loss = loss + distance_weight * smooth_l1_loss(relative_distances(s), relative_distances(t))
    if angle_weight:
        loss = loss + angle_weight * smooth_l1_loss(angles(s), angles(t))
    return loss


@dataclass(eq=False)
class RKD(LossStrategy):
    """Relational knowledge distillation (RKD) on the pooled features (see :func:`rkd_loss`).

    Args:
        weight: factor of the loss; 1 in RepDistiller's script, for all pairs.
        distance_weight: factor of the distances inside.
        angle_weight: factor of the angles inside.
    """

    weight: NonNegativeFloat = 1.0
    distance_weight: NonNegativeFloat = 25.0
    angle_weight: NonNegativeFloat = 50.0

    def loss(self, student: Features, teacher: Features, batch: Batch, adapter: nn.Module | None) -> Tensor:
        return rkd_loss(student.pooled, teacher.pooled, self.distance_weight, self.angle_weight)
