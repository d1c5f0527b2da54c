"""One-for-all distillation (OFA-KD), its loss on logits."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import log_softmax

from ickd_pl.checks import NonNegativeFloat, PositiveFloat
from ickd_pl.data.batch import Batch
from ickd_pl.models.features import Features
from ickd_pl.strategies.base import LossStrategy, full_precision
from ickd_pl.strategies.components.shapes import check_shapes


@full_precision
def ofa_loss(
    student_logits: Tensor, teacher_logits: Tensor, label: Tensor, power: float = 1.0, temperature: float = 1.0
) -> Tensor:
    """Cross entropy with the teacher's probabilities, of which the label's is raised.

    ``-1 / B * sum over the batch and k of ((p_t[k] + y[k])^power - y[k]) log p_s[k]``, ``p`` the softmax of
    ``logits / T`` and ``y`` 1 for the label, else 0. There is no factor T^2. With a power of 1 it is the cross entropy
    with the teacher's probabilities. It is a cross entropy: not 0 for equal logits.

    [0] Hao et al., One-for-All: Bridge the Gap Between Heterogeneous Architectures in Knowledge Distillation,
    NeurIPS 2023
    [1] reference code: Hao840/OFAKD (commit f7bb896), distillers/ofa.py; it takes the logarithm of a probability, which
    is minus infinity where that is rounded to 0

    Args:
        student_logits: shape (B, K).
        teacher_logits: shape (B, K); gradients do not flow into it.
        label: shape (B,), class numbers.
        power: of the probabilities; above 1 it raises the label's.
        temperature: softening T.

    Returns:
        A scalar, at least float32.

    Example:
        >>> import torch
        >>> x = torch.arange(12.0).reshape(4, 3)
        >>> round(ofa_loss(x.sin(), x.cos(), torch.tensor([0, 1, 2, 0])).item(), 3)
        1.418
    """
    check_shapes(
        "ofa_loss", ("student", student_logits, "B K"), ("teacher", teacher_logits, "B K"), ("label", label, "B")
    )
    probabilities = (teacher_logits.detach() / temperature).softmax(dim=1)
    target = torch.zeros_like(probabilities).scatter(1, label[:, None], 1.0)  # one_hot() waits for the device
    raised = (probabilities + target) ** power - target
    return -(raised * log_softmax(student_logits / temperature, dim=1)).sum(dim=1).mean()


@dataclass(eq=False)
class OFA(LossStrategy):
    """The part of one-for-all distillation (OFA-KD) on logits (see :func:`ofa_loss`), without its exit branches.

    Args:
        weight: factor of the loss; the authors' is 1, for MobileNetV2 0.1.
        power: of the probabilities; the authors' is 1 on CIFAR-100 and 1.5 on ImageNet.
        temperature: softening T.
    """

    weight: NonNegativeFloat = 1.0
    power: PositiveFloat = 1.0
    temperature: PositiveFloat = 1.0

    def loss(self, student: Features, teacher: Features, batch: Batch, adapter: nn.Module | None) -> Tensor:
        value: Tensor = ofa_loss(student.logits, teacher.logits, batch.label, self.power, self.temperature)
        return value
