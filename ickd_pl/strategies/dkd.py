"""Decoupled knowledge distillation (DKD)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import kl_div, log_softmax

from ickd_pl.checks import NonNegativeFloat, NonNegativeInt, PositiveFloat
from ickd_pl.data.batch import Batch
from ickd_pl.models.features import Features
from ickd_pl.strategies.base import LossStrategy, full_precision
from ickd_pl.strategies.components.logits import binary_kl, logits_of
from ickd_pl.strategies.components.shapes import check_shapes
from ickd_pl.strategies.components.warmup import warmed_up


def decouple(logits: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
    """Split K logits into the label's log odds and the other classes' log probabilities among themselves.

    Args:
        logits: shape (B, K), K of 2 or more.
        label: shape (B,), class numbers.

    Returns:
        Log odds of the label against all other classes, shape (B,), and log probabilities, shape (B, K - 1).
    """
    own = label[:, None]
    number = torch.arange(logits.shape[1] - 1, device=logits.device)
    others = logits.gather(1, number + (number >= own))  # (B, K - 1), the label's column left out
    return logits.gather(1, own)[:, 0] - others.logsumexp(dim=1), log_softmax(others, dim=1)


@full_precision
def dkd_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    label: Tensor,
    alpha: float = 1.0,
    beta: float = 8.0,
    temperature: float | Tensor = 4.0,
) -> Tensor:
    """KL divergence of (label, not label) times alpha, plus that among the other classes times beta.

    ``T^2 / B * sum over the batch of alpha KL(b_t || b_s) + beta KL(q_t || q_s)``: ``b`` is the softened probability of
    the label and its complement, ``q`` the softmax of ``logits / T`` over the classes that are not the label.

    [0] Zhao, Cui, Song, Qiu, Liang, Decoupled Knowledge Distillation, CVPR 2022
    [1] reference code: megvii-research/mdistiller, mdistiller/distillers/DKD.py

    The reference takes the logarithm of ``b`` and, for ``q``, lowers the label's logit by 1000. Here ``log b`` comes
    from the log odds and the label is left out, so that no probability is rounded to 0 before its logarithm.

    Args:
        student_logits: shape (B, K), K of 2 or more; with 2 the second term is 0.
        teacher_logits: shape (B, K); gradients do not flow into it.
        label: shape (B,), class numbers.
        alpha: weight of the label's term.
        beta: weight of the other classes' term.
        temperature: softening T; a tensor () gets a gradient.

    Returns:
        A scalar, at least float32.

    Example:
        >>> import torch
        >>> x = torch.arange(12.0).reshape(4, 3)
        >>> round(dkd_loss(x.sin(), x.cos(), torch.tensor([0, 1, 2, 0])).item(), 3)
        2.658
    """
    check_shapes(
        "dkd_loss", ("student", student_logits, "B K"), ("teacher", teacher_logits, "B K"), ("label", label, "B")
    )
    value: Tensor = dkd_per_image(student_logits, teacher_logits, label, alpha, beta, temperature).mean()
    return value


@full_precision
def dkd_per_image(
    student_logits: Tensor,
    teacher_logits: Tensor,
    label: Tensor,
    alpha: float = 1.0,
    beta: float = 8.0,
    temperature: float | Tensor = 4.0,
) -> Tensor:
    """The terms of :func:`dkd_loss`, whose mean it is: one for each image, (B,). The arguments are the same."""
    s_odds, s_rest = decouple(student_logits / temperature, label)
    t_odds, t_rest = decouple(teacher_logits.detach() / temperature, label)
    rest = kl_div(s_rest, t_rest, reduction="none", log_target=True).sum(dim=1)
    return temperature**2 * (alpha * binary_kl(t_odds, s_odds) + beta * rest)


@dataclass(eq=False)
class DKD(LossStrategy):
    """Decoupled knowledge distillation (DKD) (see :func:`dkd_loss`); the weight warms up linearly.

    Args:
        weight: factor of the loss.
        alpha: weight of the label's term.
        beta: weight of the other classes' term. mdistiller sets it by pair: 2 for resnet56/resnet20 and
            resnet110/resnet32; 6 for wrn_40_2/wrn_16_2, wrn_40_2/wrn_40_1, vgg13/vgg8 and vgg13/MobileNetV2; 8 for
            the others.
        temperature: softening T.
        warmup_epochs: the weight in main epoch e is ``weight * min(e / warmup_epochs, 1)``; 0 is no warm-up.
        standardise: of both networks' logits first (logit standardisation, LSKD: Sun et al., CVPR 2024). The authors'
            logs have temperature, weight and beta by pair: 2, 12, 2 for wrn_40_2/wrn_16_2 and wrn_40_2/wrn_40_1; 3,
            18, 2 for resnet56/resnet20; 2, 15, 2 for resnet110/resnet20, resnet110/resnet32, vgg13/vgg8 and
            ResNet50/MobileNetV2; 2, 9, 8 for resnet32x4/resnet8x4; 3, 9, 2 for vgg13/MobileNetV2.
    """

    weight: NonNegativeFloat = 1.0
    alpha: NonNegativeFloat = 1.0
    beta: NonNegativeFloat = 8.0
    temperature: PositiveFloat = 4.0
    warmup_epochs: NonNegativeInt = 20
    standardise: bool = False

    def weight_at(self, epoch: int | None) -> float:
        return warmed_up(self.weight, epoch, self.warmup_epochs)

    def loss(self, student: Features, teacher: Features, batch: Batch, adapter: nn.Module | None) -> Tensor:
        one, other = logits_of(student, teacher, self.standardise)
        value: Tensor = dkd_loss(one, other, batch.label, self.alpha, self.beta, self.temperature)
        return value
