"""Weighted soft labels (WSLD)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn.functional import cross_entropy, log_softmax

from ickd_pl.checks import NonNegativeFloat, PositiveFloat
from ickd_pl.data.batch import Batch
from ickd_pl.models.features import Features
from ickd_pl.strategies.base import LossStrategy, full_precision
from ickd_pl.strategies.components.shapes import check_shapes

EPS = 1e-7


@full_precision
def wsld_loss(student_logits: Tensor, teacher_logits: Tensor, label: Tensor, temperature: float = 4.0) -> Tensor:
    """Cross entropy between softened probabilities, larger for images that the student knows worse than the teacher.

    ``T^2 / B * sum over the batch of w * -sum over k of p_t[k] log p_s[k]``, ``p`` the softmax of ``logits / T``, and
    ``w = 1 - exp(-CE_s / (CE_t + 1e-7))`` without gradient, from both networks' cross entropies with the label (T = 1).

    It is a cross entropy: not 0 for equal logits.

    [0] Zhou, Song, Chen, Zhou, Wang, Yuan, Zhang, Rethinking Soft Labels for Knowledge Distillation: A Bias-Variance
    Tradeoff Perspective, ICLR 2021
    [1] reference code: bellymonster/Weighted-Soft-Label-Distillation (commit 67820dd), knowledge_distiller.py; it is
    for 1,000 classes only

    Args:
        student_logits: shape (B, K).
        teacher_logits: shape (B, K); gradients do not flow into it.
        label: shape (B,), class numbers.
        temperature: softening T.

    Returns:
        A scalar, at least float32.

    Example:
        >>> import torch
        >>> x = torch.arange(12.0).reshape(4, 3)
        >>> round(wsld_loss(x.sin(), x.cos(), torch.tensor([0, 1, 2, 0])).item(), 3)
        9.641
    """
    check_shapes(
        "wsld_loss", ("student", student_logits, "B K"), ("teacher", teacher_logits, "B K"), ("label", label, "B")
    )
    teacher_logits = teacher_logits.detach()
    known, wanted = (cross_entropy(x, label, reduction="none") for x in (student_logits.detach(), teacher_logits))
    weight = 1 - (-known / (wanted + EPS)).exp()  # (B,)
    student, teacher = (log_softmax(x / temperature, dim=1) for x in (student_logits, teacher_logits))
    return -(temperature**2) * (weight * (teacher.exp() * student).sum(dim=1)).mean()


@dataclass(eq=False)
class WSLD(LossStrategy):
    """Weighted soft labels (WSLD) (see :func:`wsld_loss`).

    Args:
        weight: factor of the loss; the authors use 2.25 with temperature 4 on CIFAR-100, 2.5 with 2 on ImageNet.
        temperature: softening T.
    """

    weight: NonNegativeFloat = 2.25
    temperature: PositiveFloat = 4.0

    def loss(self, student: Features, teacher: Features, batch: Batch, adapter: nn.Module | None) -> Tensor:
        value: Tensor = wsld_loss(student.logits, teacher.logits, batch.label, self.temperature)
        return value
