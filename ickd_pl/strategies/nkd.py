"""Normalized knowledge distillation (NKD)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn.functional import log_softmax

from ickd_pl.checks import NonNegativeFloat, PositiveFloat
from ickd_pl.data.batch import Batch
from ickd_pl.models.features import Features
from ickd_pl.strategies.base import LossStrategy, full_precision
from ickd_pl.strategies.components.shapes import check_shapes
from ickd_pl.strategies.dkd import decouple


@full_precision
def nkd_loss(
    student_logits: Tensor, teacher_logits: Tensor, label: Tensor, gamma: float = 1.5, temperature: float = 1.0
) -> Tensor:
    """Cross entropy of the label with the teacher's probability of it, plus gamma times that of the other classes.

    ``- 1 / B * sum over the batch of p_t[y] log p_s[y] + gamma T^2 sum over k != y of q_t[k] log q_s[k]``: ``p`` is the
    softmax of the logits (T = 1), ``q`` that of ``logits / T`` over the classes that are not the label.

    It is a cross entropy: not 0 for equal logits.

    [0] Yang, Zeng, Yuan, Li, From Knowledge Distillation to Self-Knowledge Distillation: A Unified Approach
    with Normalized Loss and Customized Soft Labels, ICCV 2023
    [1] reference code: yzd-v/cls_KD (commit 1e5d48f), mmcls/models/dis_losses/nkd.py

    Args:
        student_logits: shape (B, K), K of 2 or more.
        teacher_logits: shape (B, K); gradients do not flow into it.
        label: shape (B,), class numbers.
        gamma: weight of the other classes' term.
        temperature: softening T of the other classes' term.

    Returns:
        A scalar, at least float32.

    Example:
        >>> import torch
        >>> x = torch.arange(12.0).reshape(4, 3)
        >>> round(nkd_loss(x.sin(), x.cos(), torch.tensor([0, 1, 2, 0])).item(), 3)
        1.69
    """
    check_shapes(
        "nkd_loss", ("student", student_logits, "B K"), ("teacher", teacher_logits, "B K"), ("label", label, "B")
    )
    teacher_logits, own = teacher_logits.detach(), label[:, None]
    student, teacher = (log_softmax(x, dim=1).gather(1, own)[:, 0] for x in (student_logits, teacher_logits))
    s_rest, t_rest = (decouple(x / temperature, label)[1] for x in (student_logits, teacher_logits))
    rest = (t_rest.exp() * s_rest).sum(dim=1)
    return -(teacher.exp() * student + gamma * temperature**2 * rest).mean()


@dataclass(eq=False)
class NKD(LossStrategy):
    """Normalized knowledge distillation (NKD) (see :func:`nkd_loss`).

    The defaults are the authors' CIFAR-100 configuration (ResNet34 to ResNet18); on ImageNet they use gamma 1.5 and
    temperature 1. They have no run on the pairs of the table.

    Args:
        weight: factor of the loss.
        gamma: weight of the other classes' term.
        temperature: softening T of that term.
    """

    weight: NonNegativeFloat = 1.0
    gamma: NonNegativeFloat = 3.5
    temperature: PositiveFloat = 3.0

    def loss(self, student: Features, teacher: Features, batch: Batch, adapter: nn.Module | None) -> Tensor:
        value: Tensor = nkd_loss(student.logits, teacher.logits, batch.label, self.gamma, self.temperature)
        return value
