"""Knowledge distillation (KD) on softened class probabilities."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn.functional import kl_div, log_softmax

from ickd_pl.checks import NonNegativeFloat, PositiveFloat
from ickd_pl.data.batch import Batch
from ickd_pl.models.features import Features
from ickd_pl.strategies.base import LossStrategy, full_precision
from ickd_pl.strategies.components.logits import logits_of
from ickd_pl.strategies.components.shapes import check_shapes


@full_precision
def kd_loss(student_logits: Tensor, teacher_logits: Tensor, temperature: float | Tensor = 4.0) -> Tensor:
    """KL divergence from the teacher's to the student's softened probabilities, times the squared temperature.

    ``T^2 / B * sum over the batch of KL(softmax(teacher / T) || softmax(student / T))``.

    [0] Hinton, Vinyals, Dean, Distilling the Knowledge in a Neural Network, NIPS 2014 workshop,
    https://arxiv.org/abs/1503.02531

    Args:
        student_logits: shape (B, K).
        teacher_logits: shape (B, K); gradients do not flow into it.
        temperature: softening T; 1 leaves the probabilities as they are. A tensor as for :func:`kd_per_image`.

    Returns:
        A scalar, at least float32.

    Example:
        >>> import torch
        >>> x = torch.arange(12.0).reshape(4, 3)
        >>> round(kd_loss(x.sin(), x.cos()).item(), 3)
        0.46
    """
    check_shapes("kd_loss", ("student", student_logits, "B K"), ("teacher", teacher_logits, "B K"))
    if isinstance(temperature, Tensor):
        value: Tensor = kd_per_image(student_logits, teacher_logits, temperature).mean()
        return value
    student = log_softmax(student_logits / temperature, dim=1)
    teacher = log_softmax(teacher_logits.detach() / temperature, dim=1)
    return kl_div(student, teacher, reduction="batchmean", log_target=True) * temperature**2


@full_precision
def kd_per_image(student_logits: Tensor, teacher_logits: Tensor, temperature: float | Tensor = 4.0) -> Tensor:
    """The terms of :func:`kd_loss`, whose mean it is: one for each image.

    Args:
        student_logits: shape (B, K).
        teacher_logits: shape (B, K); gradients do not flow into it.
        temperature: softening T. A tensor () or (1,), or (B, 1) with one for each image, gets a gradient, also through
            the factor T^2 and the teacher's probabilities.

    Returns:
        Shape (B,), at least float32.
    """
    check_shapes("kd_per_image", ("student", student_logits, "B K"), ("teacher", teacher_logits, "B K"))
    student = log_softmax(student_logits / temperature, dim=1)
    teacher = log_softmax(teacher_logits.detach() / temperature, dim=1)
    divergence = kl_div(student, teacher, reduction="none", log_target=True).sum(1)
    factor = temperature**2
    return divergence * (factor.flatten() if isinstance(factor, Tensor) else factor)


@dataclass(eq=False)
class KD(LossStrategy):
    """Knowledge distillation (KD) on softened class probabilities (see :func:`kd_loss`).

    Args:
        weight: factor of the loss. 1 beside another method; the KD row of RepDistiller's table is 0.9 with a cross
            entropy of 0.1 (``configs/methods/kd.yaml``).
        temperature: softening T.
        standardise: of both networks' logits first (logit standardisation, LSKD: Sun et al., CVPR 2024;
            ``configs/methods/kd_ls.yaml``). The authors' logs have temperature and weight by pair: 2 and 9, but 4 and
            12 for resnet110/resnet20, 3 and 9 for vgg13/vgg8 and vgg13/MobileNetV2, 3 and 1 for
            ResNet50/MobileNetV2.
    """

    weight: NonNegativeFloat = 1.0
    temperature: PositiveFloat = 4.0
    standardise: bool = False

    def loss(self, student: Features, teacher: Features, batch: Batch, adapter: nn.Module | None) -> Tensor:
        one, other = logits_of(student, teacher, self.standardise)
        return kd_loss(one, other, self.temperature)
