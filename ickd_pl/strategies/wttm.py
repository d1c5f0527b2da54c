"""Weighted transformed teacher matching (WTTM)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from ickd_pl.checks import NonNegativeFloat, PositiveFloat
from ickd_pl.data.batch import Batch
from ickd_pl.models.features import Features
from ickd_pl.strategies.base import LossStrategy
from ickd_pl.strategies.ttm import ttm_loss


@dataclass(eq=False)
class WTTM(LossStrategy):
    """Weighted transformed teacher matching (WTTM): :func:`~ickd_pl.strategies.ttm.ttm_loss` with ``weighted``.

    Args:
        weight: factor of the loss. The only value that the authors' code names is 4 with the exponent 0.2, beside CRD
            on vgg13/vgg8; other pairs' values are in the paper's appendix only.
        exponent: of the teacher's probabilities.
    """

    weight: NonNegativeFloat = 4.0
    exponent: PositiveFloat = 0.2

    def loss(self, student: Features, teacher: Features, batch: Batch, adapter: nn.Module | None) -> Tensor:
        value: Tensor = ttm_loss(student.logits, teacher.logits, self.exponent, weighted=True)
        return value
