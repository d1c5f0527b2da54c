"""Refined logit distillation (RLD)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn.functional import kl_div, log_softmax

from ickd_pl.checks import NonNegativeFloat, NonNegativeInt, PositiveFloat
from ickd_pl.data.batch import Batch
from ickd_pl.models.features import Features
from ickd_pl.strategies.base import LossStrategy, full_precision
from ickd_pl.strategies.components.logits import binary_kl, logits_of
from ickd_pl.strategies.components.shapes import check_shapes
from ickd_pl.strategies.components.warmup import warmed_up
from ickd_pl.strategies.dkd import decouple

# The logit of a class that is left out, as in the reference code: its probability is 0, the arithmetic stays finite.
LEFT_OUT = -1e9


@full_precision
def rld_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    label: Tensor,
    alpha: float = 1.0,
    beta: float = 8.0,
    temperature: float = 4.0,
    confidence_temperature: float = 1.0,
) -> Tensor:
    """The teacher's confidence for the student's label, and its order of the classes that it ranks below the label.

    ``1 / B * sum over the batch of alpha T_a^2 KL(b_t || b_s) + beta T^2 KL(q_t || q_s)``. ``b_t`` is the teacher's
    largest probability and its complement, ``b_s`` the student's probability of the label and its complement, both at
    temperature ``T_a``. ``q`` is the softmax of ``logits / T`` over the classes whose teacher logit is below the
    label's; without such a class the term is 0.

    [0] Sun et al., Knowledge Distillation with Refined Logits, https://arxiv.org/abs/2408.07703
    [1] reference code: zju-SWJ/RLD (commit d54578f)

    Args:
        student_logits: shape (B, K), K of 2 or more.
        teacher_logits: shape (B, K); gradients do not flow into it.
        label: shape (B,), class numbers.
        alpha: weight of the confidence's term.
        beta: weight of the order's term.
        temperature: softening T.
        confidence_temperature: softening T_a.

    Returns:
        A scalar, at least float32.

    Example:
        >>> import torch
        >>> x = torch.arange(12.0).reshape(4, 3)
        >>> round(rld_loss(x.sin(), x.cos(), torch.tensor([0, 1, 2, 0])).item(), 3)
        0.423
    """
    check_shapes(
        "rld_loss", ("student", student_logits, "B K"), ("teacher", teacher_logits, "B K"), ("label", label, "B")
    )
    teacher_logits, t_a = teacher_logits.detach(), confidence_temperature
    t_odds, _ = decouple(teacher_logits / t_a, teacher_logits.argmax(dim=1))
    s_odds, _ = decouple(student_logits / t_a, label)
    left_out = teacher_logits >= teacher_logits.gather(1, label[:, None])
    s_rest, t_rest = (
        log_softmax((x / temperature).masked_fill(left_out, LEFT_OUT), dim=1) for x in (student_logits, teacher_logits)
    )
    order = kl_div(s_rest, t_rest, reduction="batchmean", log_target=True)
    return alpha * t_a**2 * binary_kl(t_odds, s_odds).mean() + beta * temperature**2 * order


@dataclass(eq=False)
class RLD(LossStrategy):
    """Refined logit distillation (RLD) (see :func:`rld_loss`); the weight warms up linearly.

    The authors use these defaults for all pairs.

    Args:
        weight: factor of the loss.
        alpha: weight of the confidence's term.
        beta: weight of the order's term.
        temperature: softening T of the order's term.
        confidence_temperature: softening of the confidence's term.
        warmup_epochs: the weight in main epoch e is ``weight * min(e / warmup_epochs, 1)``; 0 is no warm-up.
        standardise: of both networks' logits first (logit standardisation, LSKD).
    """

    weight: NonNegativeFloat = 1.0
    alpha: NonNegativeFloat = 1.0
    beta: NonNegativeFloat = 8.0
    temperature: PositiveFloat = 4.0
    confidence_temperature: PositiveFloat = 1.0
    warmup_epochs: NonNegativeInt = 20
    standardise: bool = False

    def weight_at(self, epoch: int | None) -> float:
        return warmed_up(self.weight, epoch, self.warmup_epochs)

    def loss(self, student: Features, teacher: Features, batch: Batch, adapter: nn.Module | None) -> Tensor:
        one, other = logits_of(student, teacher, self.standardise)
        temperatures = self.temperature, self.confidence_temperature
        value: Tensor = rld_loss(one, other, batch.label, self.alpha, self.beta, *temperatures)
        return value
