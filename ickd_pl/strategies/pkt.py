"""Probabilistic knowledge transfer (PKT)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ickd_pl.checks import NonNegativeFloat
from ickd_pl.data.batch import Batch
from ickd_pl.models.features import Features
from ickd_pl.strategies.base import LossStrategy, full_precision
from ickd_pl.strategies.components.shapes import check_shapes


def neighbour_probabilities(x: Tensor, eps: float) -> Tensor:
    """Cosine similarities within the batch, moved to 0..1; each row sums to one.

    Args:
        x: vectors, shape (B, D).
        eps: added to their lengths.

    Returns:
        Shape (B, B); an image counts as its own neighbour.
    """
    unit = x / (torch.linalg.vector_norm(x, dim=1, keepdim=True) + eps)
    similarity = (unit @ unit.T + 1) / 2
    probabilities: Tensor = similarity / similarity.sum(dim=1, keepdim=True)
    return probabilities


@full_precision
def pkt_loss(student: Tensor, teacher: Tensor, eps: float = 1e-7) -> Tensor:
    """KL divergence from the teacher's to the student's neighbour probabilities, over B^2.

    [0] Passalis, Tefas, Learning Deep Representations with Probabilistic Knowledge Transfer, ECCV 2018,
    https://arxiv.org/abs/1803.10837
    [1] reference code: HobbitLong/RepDistiller, distiller_zoo/PKT.py

    The mean over B^2 makes the value small, hence the weight of 30000. In float32 the terms, which cancel, leave it
    correct to 1e-4 or so only.

    Args:
        student: vectors, shape (B, D).
        teacher: vectors, shape (B, D'). Gradients do not flow into them.
        eps: guards lengths and logarithm.

    Returns:
        A scalar, at least float32.

    Example:
        >>> import torch
        >>> x = torch.arange(12.0).reshape(4, 3)
        >>> round(pkt_loss(x.sin(), (x * x).cos()).item(), 3)
        0.408
    """
    check_shapes("pkt_loss", ("student", student, "B D *"), ("teacher", teacher, "B D' *"))
    p_s = neighbour_probabilities(student.flatten(1), eps)
    p_t = neighbour_probabilities(teacher.detach().flatten(1), eps)
    return (p_t * ((p_t + eps) / (p_s + eps)).log()).mean()


@dataclass(eq=False)
class PKT(LossStrategy):
    """Probabilistic knowledge transfer (PKT) on the pooled features (see :func:`pkt_loss`).

    Args:
        weight: factor of the loss; 30000 in RepDistiller's script, for all pairs.
    """

    weight: NonNegativeFloat = 30000.0

    def loss(self, student: Features, teacher: Features, batch: Batch, adapter: nn.Module | None) -> Tensor:
        return pkt_loss(student.pooled, teacher.pooled)
