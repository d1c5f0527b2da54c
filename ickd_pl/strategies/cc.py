"""Correlation congruence (CC)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from ickd_pl.checks import NonNegativeFloat, PositiveInt
from ickd_pl.data.batch import Batch, DataInfo
from ickd_pl.models.features import Features, FeatureShapes
from ickd_pl.strategies.base import LossStrategy, full_precision
from ickd_pl.strategies.components.compatibility import expect
from ickd_pl.strategies.components.regressors import LinearEmbedding
from ickd_pl.strategies.components.shapes import check_shapes


@full_precision
def cc_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Product of the absolute differences of neighbours in the batch, summed over dimensions, averaged over pairs.

    With ``D = |student - teacher|`` this is the mean over b of ``sum_d D[b, d] * D[b + 1, d]``.

    [0] Peng et al., Correlation Congruence for Knowledge Distillation, ICCV 2019, https://arxiv.org/abs/1904.01802
    [1] reference code: HobbitLong/RepDistiller, distiller_zoo/CC.py

    Code and paper differ: the paper compares kernel matrices of the whole batch, the code only neighbouring images,
    whose order is that of the shuffled batch. This follows the code.

    Args:
        student: embedding, shape (B, D).
        teacher: embedding, shape (B, D). It is trained too: gradients flow into it.

    Returns:
        A scalar, at least float32; 0 for a batch of one, which has no neighbours.

    Example:
        >>> import torch
        >>> x = torch.arange(12.0).reshape(4, 3)
        >>> round(cc_loss(x.sin(), x.cos()).item(), 3)
        2.813
    """
    check_shapes("cc_loss", ("student", student, "B D"), ("teacher", teacher, "B D"))
    difference = (student - teacher).abs()  # (B, D)
    products = difference[:-1] * difference[1:]  # (B - 1, D)
    return products.sum() / max(len(products), 1)


@dataclass(eq=False)
class CC(LossStrategy):
    """Correlation congruence (CC) on linear embeddings of the pooled features (see :func:`cc_loss`).

    Both embeddings are trained, the teacher's as well. Only cross entropy, on the student's side, keeps the two from
    shrinking together; RepDistiller's code is the same.

    Args:
        weight: factor of the loss; 0.02 in RepDistiller's script, for all pairs.
        dim: width of the embeddings.
    """

    weight: NonNegativeFloat = 0.02
    dim: PositiveInt = 128

    def vectors_of(self, net: FeatureShapes) -> dict[str, tuple[int, ...]]:
        return {"the pooled feature": net.pooled}

    def build(self, student: FeatureShapes, teacher: FeatureShapes, data: DataInfo) -> nn.Module:
        return nn.ModuleDict(
            {
                "student": LinearEmbedding(student.pooled[0], self.dim),
                "teacher": LinearEmbedding(teacher.pooled[0], self.dim),
            }
        )

    def loss(self, student: Features, teacher: Features, batch: Batch, adapter: nn.Module | None) -> Tensor:
        embed = expect(self, adapter, nn.ModuleDict)
        return cc_loss(embed["student"](student.pooled), embed["teacher"](teacher.pooled.detach()))
