"""Transformed teacher matching (TTM)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn.functional import kl_div, log_softmax

from ickd_pl.checks import NonNegativeFloat, PositiveFloat
from ickd_pl.data.batch import Batch
from ickd_pl.models.features import Features
from ickd_pl.strategies.base import LossStrategy, full_precision
from ickd_pl.strategies.components.shapes import check_shapes


@full_precision
def ttm_loss(student_logits: Tensor, teacher_logits: Tensor, exponent: float = 0.1, weighted: bool = False) -> Tensor:
    """KL divergence from the teacher's probabilities, raised to a power and normalised, to the student's.

    ``1 / B * sum over the batch of w KL(r || softmax(student))`` with ``r = p^g / sum of p^g``, ``p`` the teacher's
    softmax. The student has temperature 1, and there is no factor T^2. ``w`` is 1, or the sum of ``p^g`` (WTTM).

    [0] Zheng, Yang, Knowledge Distillation Based on Transformed Teacher Matching, ICLR 2024
    [1] reference code: zkxufo/TTM (commit fe457b3), distiller_zoo

    Args:
        student_logits: shape (B, K).
        teacher_logits: shape (B, K); gradients do not flow into it.
        exponent: g, one over a temperature of the teacher alone.
        weighted: multiply each image's divergence by its sum of powers, which is large where the teacher is unsure.

    Returns:
        A scalar, at least float32.

    Example:
        >>> import torch
        >>> x = torch.arange(12.0).reshape(4, 3)
        >>> round(ttm_loss(x.sin(), x.cos()).item(), 3)
        0.147
    """
    check_shapes("ttm_loss", ("student", student_logits, "B K"), ("teacher", teacher_logits, "B K"))
    powers = exponent * log_softmax(teacher_logits.detach(), dim=1)
    each = kl_div(
        log_softmax(student_logits, dim=1), log_softmax(powers, dim=1), reduction="none", log_target=True
    ).sum(dim=1)
    return (each * powers.logsumexp(dim=1).exp()).mean() if weighted else each.mean()


@dataclass(eq=False)
class TTM(LossStrategy):
    """Transformed teacher matching (TTM) (see :func:`ttm_loss`).

    Args:
        weight: factor of the loss. The authors give 45, with the exponent 0.1, for vgg13/vgg8; other pairs' values are
            in the paper's appendix only.
        exponent: of the teacher's probabilities.
    """

    weight: NonNegativeFloat = 45.0
    exponent: PositiveFloat = 0.1

    def loss(self, student: Features, teacher: Features, batch: Batch, adapter: nn.Module | None) -> Tensor:
        value: Tensor = ttm_loss(student.logits, teacher.logits, self.exponent)
        return value
