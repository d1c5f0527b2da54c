"""Similarity-preserving knowledge distillation (SP)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn.functional import normalize

from ickd_pl.checks import NonNegativeFloat
from ickd_pl.data.batch import Batch
from ickd_pl.models.features import Features
from ickd_pl.strategies.base import LossStrategy, full_precision
from ickd_pl.strategies.components.shapes import check_shapes


@full_precision
def sp_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Squared distance of the batch similarity matrices over B^2; each row of a matrix has unit length.

    [0] Tung, Mori, Similarity-Preserving Knowledge Distillation, ICCV 2019, https://arxiv.org/abs/1907.09682
    [1] reference code: HobbitLong/RepDistiller, distiller_zoo/SP.py

    Args:
        student: features of any shape (B, ...).
        teacher: features (B, ...), whose other dimensions may differ. Gradients do not flow into them.

    Returns:
        A scalar, at least float32.

    Example:
        >>> import torch
        >>> x = torch.arange(12.0).reshape(4, 3)
        >>> round(sp_loss(x.sin(), (x * x).cos()).item(), 3)
        0.481
    """
    check_shapes("sp_loss", ("student", student, "B D *"), ("teacher", teacher, "B D' *"))
    s, t = student.flatten(1), teacher.detach().flatten(1)  # (B, C*H*W)
    difference = normalize(s @ s.T) - normalize(t @ t.T)  # (B, B)
    return difference.square().mean()


@dataclass(eq=False)
class SP(LossStrategy):
    """Similarity-preserving distillation (SP) on the last stage (see :func:`sp_loss`); RepDistiller's ``feat[-2]``.

    The published figures come from RepDistiller's networks, so this takes ``stages[-1]``, not ``final`` as ICKD does
    (they differ for wrn, MobileNetV2 and ShuffleV2). Under several processes the matrix is that of one process' share.

    Args:
        weight: factor of the loss; 3000 in RepDistiller's script, for all pairs.
    """

    weight: NonNegativeFloat = 3000.0

    def loss(self, student: Features, teacher: Features, batch: Batch, adapter: nn.Module | None) -> Tensor:
        return sp_loss(student.stages[-1], teacher.stages[-1])
