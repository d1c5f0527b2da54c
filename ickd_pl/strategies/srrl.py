"""Softmax regression representation learning (SRRL)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn
from torch.nn.functional import mse_loss

from ickd_pl.checks import NonNegativeFloat
from ickd_pl.data.batch import Batch, DataInfo
from ickd_pl.models.features import Features, FeatureShapes
from ickd_pl.strategies.base import LossStrategy, full_precision
from ickd_pl.strategies.components.compatibility import check_classifier, expect
from ickd_pl.strategies.components.regressors import ConvBN
from ickd_pl.strategies.components.shapes import check_shapes


@full_precision
def srrl_loss(
    vector: Tensor,
    logits: Tensor,
    teacher_vector: Tensor,
    teacher_logits: Tensor,
    feature_weight: float = 1.0,
    logit_weight: float = 1.0,
) -> Tensor:
    """Mean squared errors of the connected student's vector, and of the logits that the teacher's last layer gives it.

    [0] Yang, Martinez, Bulat, Tzimiropoulos, Knowledge Distillation via Softmax Regression Representation Learning,
    ICLR 2021
    [1] reference code: DefangChen/SimKD (commit 2b389c3), models/util.py; the authors' own, for ImageNet, is
    jingyang2017/KD_SRRL (commit d2e802f)

    Args:
        vector: of the student, in the teacher's width, shape (B, D).
        logits: of the teacher's last layer on it, shape (B, K).
        teacher_vector: shape (B, D); gradients do not flow into it.
        teacher_logits: shape (B, K); gradients do not flow into them.
        feature_weight: factor of the vectors' term.
        logit_weight: factor of the logits' term.

    Returns:
        A scalar, at least float32.

    Example:
        >>> import torch
        >>> x = torch.arange(12.0).reshape(4, 3)
        >>> round(srrl_loss(x.sin(), x[:, :2].sin(), x.cos(), x[:, :2].cos()).item(), 3)
        1.667
    """
    check_shapes("srrl_loss", ("student vector", vector, "B D"), ("teacher vector", teacher_vector, "B D"))
    check_shapes("srrl_loss", ("student logits", logits, "B K"), ("teacher logits", teacher_logits, "B K"))
    features = mse_loss(vector, teacher_vector.detach())
    return feature_weight * features + logit_weight * mse_loss(logits, teacher_logits.detach())


@dataclass(eq=False)
class SRRL(LossStrategy):
    """Softmax regression representation learning (SRRL) (see :func:`srrl_loss`).

    A trained connector (1x1 convolution without bias, batch norm, ReLU) brings the student's feature to the teacher's
    width. The teacher's last layer is frozen, and the gradient goes through it into the connector.

    The two public codes differ in what is connected: the pooled vector, with soft targets (KD, weight 1) beside it, in
    SimKD's toolbox; the last map, averaged afterwards and without soft targets, in the authors' code. The authors did
    not record weights for CIFAR.

    Args:
        weight: factor of the loss.
        feature_weight: factor of the vectors' term.
        logit_weight: factor of the logits' term.
        connect: ``vector`` or ``map``.
    """

    weight: NonNegativeFloat = 1.0
    feature_weight: NonNegativeFloat = 1.0
    logit_weight: NonNegativeFloat = 1.0
    connect: Literal["vector", "map"] = "vector"

    def maps_of(self, net: FeatureShapes) -> dict[str, tuple[int, ...]]:
        return {"the map before the pooling": net.final} if self.connect == "map" else {}

    def vectors_of(self, net: FeatureShapes) -> dict[str, tuple[int, ...]]:
        return {"the pooled feature": net.pooled}

    def check(self, student: FeatureShapes, teacher: FeatureShapes) -> None:
        if teacher.classifier is None:
            check_classifier(self, student, teacher, teacher)

    def build(self, student: FeatureShapes, teacher: FeatureShapes, data: DataInfo) -> nn.Module:
        given = student.final if self.connect == "map" else student.pooled
        return ConvBN(given[0], teacher.pooled[0])

    def loss(self, student: Features, teacher: Features, batch: Batch, adapter: nn.Module | None) -> Tensor:
        given = student.final if self.connect == "map" else student.pooled.flatten(1)[:, :, None, None]
        vector = expect(self, adapter, ConvBN)(given).relu().mean(dim=(2, 3))
        if teacher.classifier is None:
            raise RuntimeError("SRRL needs the teacher's last layer")
        weights = self.feature_weight, self.logit_weight
        logits = teacher.classifier(vector)
        value: Tensor = srrl_loss(vector, logits, teacher.pooled.flatten(1), teacher.logits, *weights)
        return value
