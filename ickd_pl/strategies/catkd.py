"""Class attention transfer (CAT-KD)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d, conv2d, normalize

from ickd_pl.checks import NonNegativeFloat, PositiveInt, whole_number
from ickd_pl.data.batch import Batch
from ickd_pl.models.base import FeatureNet
from ickd_pl.models.features import Features, FeatureShapes
from ickd_pl.models.hooked import HookedNet
from ickd_pl.strategies.base import LossStrategy, full_precision
from ickd_pl.strategies.components.compatibility import check_classifier
from ickd_pl.strategies.components.shapes import check_shapes


@full_precision
def catkd_loss(
    student: Tensor,
    student_weight: Tensor,
    teacher: Tensor,
    teacher_weight: Tensor,
    resolution: int = 2,
    normalise: bool = False,
) -> Tensor:
    """Mean squared difference of the class activation maps of student and teacher, averaged to a small grid.

    A class's activation map is the sum of the last map's channels, weighted as in the classifier, without its bias.
    With ``normalise`` the grid of each class is divided by its Euclidean norm (at least 1e-12).

    [0] Guo, Yan, Li, Lin, Class Attention Transfer Based Knowledge Distillation, CVPR 2023,
        https://arxiv.org/abs/2304.12777
    [1] reference code: GzyAftermath/CAT-KD, mdistiller/distillers/CAT_KD.py, at commit 4467073. It averages after the
        weighted sum; here before, which is the same and costs less.

    Args:
        student: the last map, shape (B, C, H, W).
        student_weight: of the classifier, shape (K, C).
        teacher: shape (B, C', H', W'); gradients do not flow into it.
        teacher_weight: shape (K, C'); likewise.
        resolution: height and width of the grid.
        normalise: compare directions over the grid.

    Returns:
        A scalar, at least float32.

    Example:
        >>> import torch
        >>> student, teacher = torch.ones(2, 3, 4, 4), torch.ones(2, 1, 8, 8)
        >>> catkd_loss(student, torch.ones(5, 3), teacher, torch.ones(5, 1)).item()
        4.0
    """
    check_shapes("catkd_loss", ("student", student, "B C H W"), ("teacher", teacher, "B C' H' W'"))
    check_shapes("catkd_loss", ("student_weight", student_weight, "K C"), ("teacher_weight", teacher_weight, "K C'"))
    whole_number("catkd_loss", 1, resolution=resolution)
    own = _activation_maps(student, student_weight, resolution)
    target = _activation_maps(teacher.detach(), teacher_weight.detach(), resolution)
    if normalise:
        own, target = normalize(own, dim=(2, 3)), normalize(target, dim=(2, 3))  # type: ignore[arg-type]
    return (own - target).square().mean()


def _activation_maps(x: Tensor, weight: Tensor, resolution: int) -> Tensor:
    """(B, K, resolution, resolution)."""
    return conv2d(adaptive_avg_pool2d(x, resolution), weight[:, :, None, None])


@dataclass(eq=False)
class CATKD(LossStrategy):
    """Class attention transfer (CAT-KD) (see :func:`catkd_loss`) on the map before the pooling, ``final``.

    The student has no bias in its last layer, as in the original: it is 0 and not trained. So its logits are the means
    of its class activation maps. In files and exports it is the network as ever, with a bias of zeros. Its last
    layer gets a gradient from the cross entropy and from this loss; of the teacher's the bias is left out.

    The original's last layer starts as a convolution of the resnets does, N(0, 2 / K); here as it does without the
    method, so that runs of one seed start alike.

    Settings of the authors by pair, for ``weight``, ``resolution`` and ``normalise``; there is none for
    resnet110/resnet20 and ResNet50/vgg8:

    ======================== ====== ========== =========
    pair                     weight resolution normalise
    ======================== ====== ========== =========
    resnet56/resnet20           0.7          2 false
    resnet110/resnet32          1.8          2 false
    resnet32x4/resnet8x4         15          2 false
    wrn_40_2/wrn_16_2            12          2 false
    wrn_40_2/wrn_40_1           1.5          2 false
    vgg13/vgg8                  4.5          2 false
    vgg13/MobileNetV2            15          2 true
    ResNet50/MobileNetV2         40          2 true
    resnet32x4/ShuffleV1        600          4 true
    resnet32x4/ShuffleV2        600          4 true
    wrn_40_2/ShuffleV1           80          4 true
    ======================== ====== ========== =========

    Args:
        weight: factor of the loss.
        resolution: height and width to which the maps are averaged.
        normalise: compare directions over the grid.
    """

    weight: NonNegativeFloat = 15.0
    resolution: PositiveInt = 2
    normalise: bool = False

    def maps_of(self, net: FeatureShapes) -> dict[str, tuple[int, ...]]:
        return {"the map before the pooling": net.final}

    def prepare(self, student: FeatureNet | HookedNet) -> None:
        """Make the bias of the student's last layer 0, outside of what is trained."""
        layer = student.last_linear()
        if layer is not None and isinstance(layer.bias, nn.Parameter):
            bias = torch.zeros_like(layer.bias, requires_grad=False)
            del layer.bias
            layer.register_buffer("bias", bias)

    def check(self, student: FeatureShapes, teacher: FeatureShapes) -> None:
        check_classifier(self, student, teacher, student, teacher)

    def loss(self, student: Features, teacher: Features, batch: Batch, adapter: nn.Module | None) -> Tensor:
        assert student.classifier is not None and teacher.classifier is not None  # see check
        value: Tensor = catkd_loss(
            student.final, student.classifier.weight, teacher.final, teacher.classifier.weight,
            self.resolution, self.normalise,
        )  # fmt: skip
        return value
