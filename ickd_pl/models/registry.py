"""The networks of the benchmark by name."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from ickd_pl.errors import UserError, near
from ickd_pl.models.base import FeatureNet
from ickd_pl.models.mobilenetv2 import MobileNetV2
from ickd_pl.models.resnet import ResNet
from ickd_pl.models.resnet50 import ResNet50
from ickd_pl.models.shufflenetv1 import ShuffleNetV1
from ickd_pl.models.shufflenetv2 import ShuffleNetV2
from ickd_pl.models.vgg import VGG
from ickd_pl.models.wrn import WideResNet

NARROW = (16, 16, 32, 64)
WIDE = (32, 64, 128, 256)

_NETWORKS: dict[str, Callable[[int], FeatureNet]] = {
    **{f"resnet{depth}": partial(ResNet, (depth - 2) // 6, NARROW) for depth in (8, 14, 20, 32, 44, 56, 110)},
    **{f"resnet{depth}x4": partial(ResNet, (depth - 2) // 6, WIDE) for depth in (8, 32)},
    **{f"wrn_{depth}_{width}": partial(WideResNet, depth, width) for depth in (16, 40) for width in (1, 2)},
    "vgg8": partial(VGG, (1, 1, 1, 1, 1)),
    "vgg11": partial(VGG, (1, 1, 2, 2, 2)),
    "vgg13": partial(VGG, (2, 2, 2, 2, 2)),
    "vgg16": partial(VGG, (2, 2, 3, 3, 3)),
    "vgg19": partial(VGG, (2, 2, 4, 4, 4)),
    "ResNet50": ResNet50,
    "MobileNetV2": MobileNetV2,
    "ShuffleV1": ShuffleNetV1,
    "ShuffleV2": ShuffleNetV2,
}


def model_names() -> list[str]:
    """Every name :func:`get_model` knows."""
    return list(_NETWORKS)


def get_model(name: str, num_classes: int = 100) -> FeatureNet:
    """Build a network. Its start is drawn from torch's global stream: wrap the call in ``seeded(...)`` to fix it.

    Args:
        name: one of :func:`model_names`, such as ``resnet8x4`` or ``wrn_40_2``.
        num_classes: K, size of the logits.

    Raises:
        UserError: for an unknown name (it names the near ones) or fewer than one class.
    """
    if name not in _NETWORKS:
        raise UserError(f"unknown network '{name}': {near(name, _NETWORKS)}")
    if num_classes < 1:
        raise UserError(f"num_classes must be at least 1, got {num_classes}")
    net = _NETWORKS[name](num_classes)
    net.name = name
    return net
