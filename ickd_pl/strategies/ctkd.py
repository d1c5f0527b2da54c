"""Curriculum temperature for knowledge distillation (CTKD)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import log_softmax, softmax

from ickd_pl.checks import NonNegativeFloat, PositiveFloat, PositiveInt, zero_or_more
from ickd_pl.data.batch import Batch, DataInfo
from ickd_pl.models.features import Features, FeatureShapes
from ickd_pl.strategies.base import LossStrategy, full_precision
from ickd_pl.strategies.components.compatibility import expect
from ickd_pl.strategies.components.logits import standardised
from ickd_pl.strategies.components.shapes import check_shapes
from ickd_pl.strategies.kd import kd_per_image


@full_precision
def ctkd_loss(student_logits: Tensor, teacher_logits: Tensor, temperature: Tensor, eps: float = 0.0) -> Tensor:
    """KD's loss with a temperature that gets a gradient: one for the batch, or one for each image.

    ``mean over the batch of T^2 * KL(softmax(teacher / T) + eps || softmax(student / T))``; T is in the gradient of
    both distributions and of the factor.

    [0] Li, Li, Yang, Zhao, Song, Luo, Li, Yang, Curriculum Temperature for Knowledge Distillation, AAAI 2023,
        https://arxiv.org/abs/2211.16231
    [1] reference code: zhengli97/CTKD, at commit 7d52522; the form with one temperature per image is in its README

    Args:
        student_logits: shape (B, K).
        teacher_logits: shape (B, K); gradients do not flow into it.
        temperature: softening T, shape (), (1,) or (B, 1).
        eps: added to the teacher's probabilities; the original has 1e-7 where each image has its temperature, else 0.

    Returns:
        A scalar, at least float32.

    Example:
        >>> import torch
        >>> x = torch.arange(12.0).reshape(4, 3)
        >>> round(ctkd_loss(x.sin(), x.cos(), torch.tensor(4.0)).item(), 3)
        0.46
    """
    zero_or_more("ctkd_loss", eps=eps)
    if not eps:
        value: Tensor = kd_per_image(student_logits, teacher_logits, temperature).mean()
        return value
    check_shapes("ctkd_loss", ("student", student_logits, "B K"), ("teacher", teacher_logits, "B K"))
    target = softmax(teacher_logits.detach() / temperature, dim=1) + eps
    divergence = (target * (target.log() - log_softmax(student_logits / temperature, dim=1))).sum(1)
    return (divergence * temperature.square().flatten()).mean()


class Temperature(nn.Module):
    """A learned temperature T = lowest + span * sigmoid(theta), whose gradient is scaled.

    Args:
        lowest, span: T is between lowest and lowest + span; it starts at theta = 1.
    """

    def __init__(self, lowest: float, span: float) -> None:
        super().__init__()
        self.lowest, self.span = lowest, span
        self.theta = nn.Parameter(torch.ones(1))

    def forward(self, factor: Tensor) -> Tensor:
        """T, shape (1,); the gradient that reaches theta is multiplied by the factor, shape ()."""
        theta = torch.lerp(self.theta.detach(), self.theta, factor.to(self.theta))  # theta itself
        return self.lowest + self.span * theta.sigmoid()


@dataclass(eq=False)
class CTKD(LossStrategy):
    """Knowledge distillation whose temperature is trained against the student (CTKD) (see :func:`ctkd_loss`).

    The temperature is ``lowest + span * sigmoid(theta)`` with one trained number theta, which starts at 1 (a
    temperature of 15.6). It is trained to make the task harder: its gradient is multiplied by a negative number, which
    goes from 0 to ``-strength`` along half a cosine over the first ``curriculum_epochs`` main epochs, and stays there;
    outside of ``fit`` it is ``-strength``. As in the original, theta is in the same SGD as the student, with its
    weight decay.

    Beside other methods, such as PKT, SP, VID or CRD, the original uses this loss and theirs, weighted 0.9 and as they
    are alone, with a cross entropy of 0.1. One setting serves all pairs. The arguments' names in the original are
    t_start and t_end for ``lowest`` and ``span``, decay_min (-1) and decay_loops (10) for the last two; its network
    that predicts a temperature for each image is not public, so only its loss is here.

    Args:
        weight: factor of the loss; 0.9 beside a cross entropy of 0.1 in the original (``configs/methods/ctkd.yaml``).
        lowest: lower end of the temperature.
        span: upper end less the lower one.
        strength: how much of the gradient the temperature gets, turned around.
        curriculum_epochs: main epochs until then.
        standardise: standardise the logits first (:func:`~ickd_pl.strategies.components.logits.standardised`), as the
            authors of logit standardisation combine both; they use weight 9.
    """

    weight: NonNegativeFloat = 0.9
    lowest: PositiveFloat = 1.0
    span: PositiveFloat = 20.0
    strength: NonNegativeFloat = 1.0
    curriculum_epochs: PositiveInt = 10
    standardise: bool = False

    def build(self, student: FeatureShapes, teacher: FeatureShapes, data: DataInfo) -> nn.Module:
        return Temperature(self.lowest, self.span)

    def factor(self) -> Tensor:
        """What the temperature's gradient is multiplied by, shape ()."""
        if self.main_epoch is None:
            return torch.tensor(-self.strength)
        progress = self.main_epoch.clamp(max=self.curriculum_epochs) / self.curriculum_epochs
        # -(1 - cos(pi * progress)) / 2, without the cancellation.
        return -self.strength * (progress * (math.pi / 2)).sin().square()

    def loss(self, student: Features, teacher: Features, batch: Batch, adapter: nn.Module | None) -> Tensor:
        temperature = expect(self, adapter, Temperature)(self.factor())
        return self.at(student.logits, teacher.logits, temperature)

    @full_precision
    def at(self, student: Tensor, teacher: Tensor, temperature: Tensor) -> Tensor:
        """The loss at a temperature."""
        if self.standardise:
            student, teacher = standardised(student), standardised(teacher)
        value: Tensor = ctkd_loss(student, teacher, temperature)
        return value
