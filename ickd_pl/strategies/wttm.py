"""Weighted transformed teacher matching (WTTM)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from ickd_pl.checks import NonNegativeFloat, PositiveFloat
from ickd_pl.data.batch import Batch
from ickd_pl.models.features import Features
from ickd_pl.strategies.base import LossStrategy
from ickd_pl.strategies.ttm import ttm_loss


def wttm_loss(student_logits: Tensor, teacher_logits: Tensor, exponent: float = 0.2) -> Tensor:
    """:func:`~ickd_pl.strategies.ttm.ttm_loss` with each image weighted by the sum of the teacher's powers.

    Args:
        student_logits: shape (B, K).
        teacher_logits: shape (B, K); gradients do not flow into it.
        exponent: of the teacher's probabilities.

    Returns:
        A scalar, at least float32.

    Example:
        >>> import torch
        >>> x = torch.arange(12.0).reshape(4, 3)
        >>> round(wttm_loss(x.sin(), x.cos()).item(), 3)
        0.405
    """
    value: Tensor = ttm_loss(student_logits, teacher_logits, exponent, weighted=True)
    return value


@dataclass(eq=False)
class WTTM(LossStrategy):
    """Weighted transformed teacher matching (WTTM) (see :func:`wttm_loss`).

    Args:
        weight: factor of the loss. The only value that the authors' code names is 4 with the exponent 0.2, beside CRD
            on vgg13/vgg8; other pairs' values are in the paper's appendix only.
        exponent: of the teacher's probabilities.
    """

    weight: NonNegativeFloat = 4.0
    exponent: PositiveFloat = 0.2

    def loss(self, student: Features, teacher: Features, batch: Batch, adapter: nn.Module | None) -> Tensor:
        return wttm_loss(student.logits, teacher.logits, self.exponent)
