"""Knowledge distillation with the reused teacher classifier (SimKD)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from ickd_pl.checks import NonNegativeFloat, PositiveInt
from ickd_pl.data.batch import Batch, DataInfo
from ickd_pl.models.features import Features, FeatureShapes
from ickd_pl.models.reused import ReusedClassifier
from ickd_pl.strategies.base import LossStrategy, full_precision
from ickd_pl.strategies.components.compatibility import check_classifier, incompatible, match_size
from ickd_pl.strategies.components.shapes import check_shapes


@full_precision
def simkd_loss(projected: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared difference of the projected student map and the teacher's last map, over all elements.

    Where sizes differ, the larger map is averaged (adaptive pooling) to the size of the smaller.

    [0] Chen, Mei, Zhang, Wang, Feng, Chen, Knowledge Distillation with the Reused Teacher Classifier, CVPR 2022,
        https://arxiv.org/abs/2203.14001
    [1] reference code: DefangChen/SimKD, models/util.py, at commit 2b389c3

    Args:
        projected: shape (B, C, H, W).
        teacher: shape (B, C, H', W'); gradients do not flow into it.

    Returns:
        A scalar, at least float32.

    Example:
        >>> import torch
        >>> projected, teacher = torch.ones(2, 3, 4, 4), torch.zeros(2, 3, 8, 8)
        >>> simkd_loss(projected, teacher).item()
        1.0
    """
    check_shapes("simkd_loss", ("projected", projected, "B C H W"), ("teacher", teacher, "B C H' W'"))
    student, target = match_size(projected, teacher.detach())
    return (student - target).square().mean()


@dataclass(eq=False)
class SimKD(LossStrategy):
    """Distillation to a student that predicts by its teacher's last layer (SimKD) (see :func:`simkd_loss`).

    A projector brings the student's last stage to the teacher's last map; the student then predicts by the teacher's
    frozen last layer on the mean of the projected map (:class:`~ickd_pl.models.reused.ReusedClassifier`). Training and
    test accuracy are of that prediction, and the projector and a copy of the teacher's layer are saved and exported
    with the student: it has more parameters than the bare network (0.21 million for 256-channel maps and factor 2).

    There is no other loss in the original: ``ce_weight`` is 0. The cross entropy, if it has a weight, and other methods
    read the student's own last layer, which the prediction does not use; with weight 0 it only decays. The projector
    reads ``stages[-1]``, as in the original: in MobileNetV2 and ShuffleV2 that is the map before the last 1x1
    convolution, which then is unused too.

    The original's teachers are retrained, some of its networks are its own, and the best epoch counts.

    Args:
        weight: factor of the loss.
        factor: the projector's inner convolutions have 1 / factor of the teacher's channels; 2 in the paper's tables
            (8 and 4 cost less and reach less), for all pairs.
    """

    predicts = True

    weight: NonNegativeFloat = 1.0
    factor: PositiveInt = 2

    def maps_of(self, net: FeatureShapes) -> dict[str, tuple[int, ...]]:
        return {"the last stage": net.stages[-1], "the map before the pooling": net.final}

    def check(self, student: FeatureShapes, teacher: FeatureShapes) -> None:
        check_classifier(self, student, teacher, teacher)
        if self.factor > teacher.final[0]:
            why = f"factor {self.factor} leaves none of the {teacher.final[0]} channels of {teacher.name}"
            raise incompatible(self, student, teacher, why)

    def build(self, student: FeatureShapes, teacher: FeatureShapes, data: DataInfo) -> nn.Module:
        channels, *size = teacher.final
        return ReusedClassifier(student.stages[-1][0], channels, self.factor, size, data.num_classes)

    def loss(self, student: Features, teacher: Features, batch: Batch, adapter: nn.Module | None) -> Tensor:
        value: Tensor = simkd_loss(student.final, teacher.final)
        return value
