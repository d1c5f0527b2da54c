"""Distillation from a stronger teacher (DIST): correlations between and within classes."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn
from torch.linalg import vector_norm

from ickd_pl.checks import NonNegativeFloat, PositiveFloat
from ickd_pl.data.batch import Batch
from ickd_pl.models.features import Features
from ickd_pl.strategies.base import LossStrategy, full_precision
from ickd_pl.strategies.components.shapes import check_shapes

EPS = 1e-8


def correlation(a: Tensor, b: Tensor, dim: int) -> Tensor:
    """Pearson's correlation along a dimension; 1e-8 is added to the product of the deviations, so a constant has 0."""
    a, b = a - a.mean(dim, keepdim=True), b - b.mean(dim, keepdim=True)
    found: Tensor = (a * b).sum(dim) / (vector_norm(a, dim=dim) * vector_norm(b, dim=dim) + EPS)
    return found


@full_precision
def dist_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    beta: float = 1.0,
    gamma: float = 1.0,
    temperature: float = 4.0,
) -> Tensor:
    """One minus the correlation of softened probabilities, between the classes of an image and within each class.

    ``T^2 (beta (1 - mean over images of rho(row)) + gamma (1 - mean over classes of rho(column)))``, ``rho`` the
    correlation of student and teacher, of the (B, K) probabilities ``softmax(logits / T)``.

    [0] Huang, You, Wang, Qian, Xu, Knowledge Distillation from A Stronger Teacher, NeurIPS 2022
    [1] reference code: the authors' image_classification_sota, lib/models/losses/dist_kd.py

    Args:
        student_logits: shape (B, K).
        teacher_logits: shape (B, K); gradients do not flow into it.
        beta: weight of the term between classes.
        gamma: weight of the term within classes; it is ``T^2 gamma``, without gradient, for a batch of one image.
        temperature: softening T.

    Returns:
        A scalar, at least float32.

    Example:
        >>> import torch
        >>> x = torch.arange(12.0).reshape(4, 3)
        >>> round(dist_loss(x.sin(), x.cos()).item(), 3)
        49.962
    """
    check_shapes("dist_loss", ("student", student_logits, "B K"), ("teacher", teacher_logits, "B K"))
    student, teacher = ((x / temperature).softmax(dim=1) for x in (student_logits, teacher_logits.detach()))
    between, within = (1 - correlation(student, teacher, dim).mean() for dim in (1, 0))
    return temperature**2 * (beta * between + gamma * within)


@dataclass(eq=False)
class DIST(LossStrategy):
    """Distillation from a stronger teacher (DIST) (see :func:`dist_loss`).

    The defaults are the authors' for CIFAR-100. They train MobileNetV2 and ShuffleNets with a rate of 0.01.

    Args:
        weight: factor of the loss.
        beta: weight of the term between classes.
        gamma: weight of the term within classes.
        temperature: softening T.
    """

    weight: NonNegativeFloat = 2.0
    beta: NonNegativeFloat = 1.0
    gamma: NonNegativeFloat = 1.0
    temperature: PositiveFloat = 4.0

    def loss(self, student: Features, teacher: Features, batch: Batch, adapter: nn.Module | None) -> Tensor:
        value: Tensor = dist_loss(student.logits, teacher.logits, self.beta, self.gamma, self.temperature)
        return value
