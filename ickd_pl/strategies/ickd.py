"""Inter-channel correlation for knowledge distillation (ICKD)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn.functional import normalize

from ickd_pl.checks import NonNegativeFloat
from ickd_pl.data.batch import Batch, DataInfo
from ickd_pl.models.features import Features, FeatureShapes
from ickd_pl.strategies.base import LossStrategy, full_precision
from ickd_pl.strategies.components.compatibility import expect
from ickd_pl.strategies.components.regressors import ConvBN
from ickd_pl.strategies.components.shapes import check_shapes


@full_precision
def channel_correlation(x: Tensor) -> Tensor:
    """Inter-channel correlation matrix of every image: the Gram matrix of the channels, each row of unit length.

    Args:
        x: feature map, shape (B, C, H, W).

    Returns:
        Shape (B, C, C).
    """
    flat = x.flatten(2)  # (B, C, H*W)
    return normalize(flat @ flat.transpose(1, 2), dim=2)


@full_precision
def ickd_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Squared distance of the inter-channel correlation matrices, over B * C.

    [0] Liu et al., Exploring Inter-Channel Correlation for Diversity-preserved Knowledge Distillation, ICCV 2021
    [1] reference code: ADLab-AutoDrive/ICKD, Cifar100/distiller_zoo/ICKD.py

    Code and paper differ: the paper divides by C^2 and does not mention that rows are normalised. This follows the
    code, from which the published CIFAR-100 figures came.

    Args:
        student: feature map with the teacher's channel count, shape (B, C, H, W).
        teacher: feature map, shape (B, C, H', W'); the two sizes may differ. Gradients do not flow into it.

    Returns:
        A scalar, at least float32.

    Example:
        >>> import torch
        >>> x = torch.arange(48.0).reshape(2, 3, 2, 4)
        >>> round(ickd_loss(x.sin(), x.cos()).item(), 3)
        0.066
    """
    check_shapes("ickd_loss", ("student", student, "B C H *"), ("teacher", teacher, "B C H' *"))
    difference = channel_correlation(student) - channel_correlation(teacher.detach())  # (B, C, C)
    return difference.square().sum() / (difference.shape[0] * difference.shape[1])


@dataclass(eq=False)
class ICKD(LossStrategy):
    """Inter-channel correlation (ICKD-C) of the map that enters the global pooling (see :func:`ickd_loss`).

    The student's map passes a trainable 1x1 convolution without bias and a batch norm to the teacher's channel count,
    also when the counts agree. The second embedding of ICKD's own code, which is never used there, is not built.

    Args:
        weight: factor of the loss; 2.5 in ICKD's own CIFAR-100 script, for all pairs.
    """

    weight: NonNegativeFloat = 2.5

    def maps_of(self, net: FeatureShapes) -> dict[str, tuple[int, ...]]:
        return {"the map before the global pooling": net.final}

    def build(self, student: FeatureShapes, teacher: FeatureShapes, data: DataInfo) -> nn.Module:
        return ConvBN(student.final[0], teacher.final[0])

    def loss(self, student: Features, teacher: Features, batch: Batch, adapter: nn.Module | None) -> Tensor:
        return ickd_loss(expect(self, adapter, ConvBN)(student.final), teacher.final)
