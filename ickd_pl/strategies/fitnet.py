"""FitNets: hints from an intermediate layer."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn.functional import mse_loss

from ickd_pl.checks import NonNegativeFloat, NonNegativeInt
from ickd_pl.data.batch import Batch, DataInfo
from ickd_pl.models.features import Features, FeatureShapes
from ickd_pl.strategies.base import LossStrategy, full_precision
from ickd_pl.strategies.components.compatibility import expect, incompatible, shape_text
from ickd_pl.strategies.components.regressors import ConvRegressor, can_regress
from ickd_pl.strategies.components.shapes import check_shapes


@full_precision
def fitnet_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared error of the regressed student map and the teacher's map, over all elements.

    [0] Romero et al., FitNets: Hints for Thin Deep Nets, ICLR 2015, https://arxiv.org/abs/1412.6550
    [1] reference code: HobbitLong/RepDistiller, distiller_zoo/FitNet.py

    Args:
        student: output of the regressor, shape (B, C, H, W).
        teacher: feature map of the same shape. Gradients do not flow into it.

    Returns:
        A scalar, at least float32.

    Example:
        >>> import torch
        >>> x = torch.arange(48.0).reshape(2, 3, 2, 4)
        >>> round(fitnet_loss(x.sin(), x.cos()).item(), 3)
        1.002
    """
    check_shapes("fitnet_loss", ("student", student, "B ..."), ("teacher", teacher, "B ..."))
    return mse_loss(student, teacher.detach())


@dataclass(eq=False)
class FitNet(LossStrategy):
    """FitNets with one hint layer, regressed by convolution, batch norm and ReLU (see :func:`fitnet_loss`).

    Code and paper differ: the paper trains up to the hint first and the rest afterwards; RepDistiller, and this,
    train all at once. The features of a wrn are sums before batch norm and ReLU, so a wrn teacher's hint has negative
    values that the regressor, which ends in a ReLU, cannot give; this is kept.

    The published figures come from RepDistiller's networks, where layer 2 is the end of the second stage. ICKD's
    resnet, wrn and ResNet50 list one feature per block, so that layer 2 is the second block there (the same only for
    one block per stage, as in resnet8x4).

    Args:
        weight: factor of the loss; 100 in RepDistiller's script, for all pairs.
        hint_layer: position in the list of stem and stages: 0 is the stem, 2 (RepDistiller's) the second stage.
    """

    weight: NonNegativeFloat = 100.0
    hint_layer: NonNegativeInt = 2

    def maps_of(self, net: FeatureShapes) -> dict[str, tuple[int, ...]]:
        return dict(list(net.stage_ends(stem=True).items())[self.hint_layer : self.hint_layer + 1])

    def check(self, student: FeatureShapes, teacher: FeatureShapes) -> None:
        for net in (student, teacher):
            if not 0 <= self.hint_layer <= len(net.stages):
                why = f"hint_layer {self.hint_layer} is not in 0..{len(net.stages)}, the stem and stages of {net.name}"
                raise incompatible(self, student, teacher, why)
        source, target = self._hint(student), self._hint(teacher)
        if not can_regress(source, target):
            why = (
                f"no convolution brings layer {self.hint_layer} of the student, {shape_text(source)}, to that of the "
                f"teacher, {shape_text(target)}: the student's map must be half as large or not smaller"
            )
            raise incompatible(self, student, teacher, why)

    def build(self, student: FeatureShapes, teacher: FeatureShapes, data: DataInfo) -> nn.Module:
        return ConvRegressor(self._hint(student), self._hint(teacher))

    def loss(self, student: Features, teacher: Features, batch: Batch, adapter: nn.Module | None) -> Tensor:
        regressor = expect(self, adapter, ConvRegressor)
        s = (student.stem, *student.stages)[self.hint_layer]
        t = (teacher.stem, *teacher.stages)[self.hint_layer]
        return fitnet_loss(regressor(s), t)

    def _hint(self, shapes: FeatureShapes) -> tuple[int, ...]:
        return (shapes.stem, *shapes.stages)[self.hint_layer]
