"""ResNet for 32x32 images with basic blocks: "Deep Residual Learning for Image Recognition", He et al., CVPR 2016."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

from ickd_pl.models.base import FeatureNet, average_pool, conv1x1, conv3x3, init_convs
from ickd_pl.models.features import Features
from ickd_pl.models.registry import register

NARROW = (16, 16, 32, 64)  # widths of the stem and of the stages
WIDE = (32, 64, 128, 256)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut; returns the sum BEFORE the last ReLU, which :func:`run_stage` applies."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = conv3x3(in_channels, out_channels, stride)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = conv3x3(out_channels, out_channels)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.downsample: nn.Module = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            self.downsample = nn.Sequential(conv1x1(in_channels, out_channels, stride), nn.BatchNorm2d(out_channels))

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)), inplace=True)
        total: Tensor = self.bn2(self.conv2(out)) + self.downsample(x)
        return total


def run_stage(blocks: nn.ModuleList, x: Tensor) -> tuple[Tensor, Tensor]:
    """Run blocks that return their sum before the ReLU.

    Returns:
        The stage's output after and before its last ReLU.
    """
    total = x
    for block in blocks:
        total = block(x)
        x = F.relu(total)
    return x, total


class ResNet(FeatureNet):
    """Stem and three stages of basic blocks with strides 1, 2, 2.

    ``resnetN`` has N = 6n + 2 layers and widths (16, 16, 32, 64); ``resnetNx4`` has widths (32, 64, 128, 256).
    For a 32x32 image: stem w0x32x32, stages w1x32x32, w2x16x16, w3x8x8, pooled w3.

    Args:
        blocks: n, blocks per stage.
        widths: channels of the stem and of the three stages.
        num_classes: K.
    """

    classifier_path = "fc"

    def __init__(self, blocks: int, widths: Sequence[int], num_classes: int) -> None:
        super().__init__()
        stem, first, second, third = widths
        self.conv1 = conv3x3(3, stem)
        self.bn1 = nn.BatchNorm2d(stem)
        self.layer1 = self._stage(blocks, stem, first, stride=1)
        self.layer2 = self._stage(blocks, first, second, stride=2)
        self.layer3 = self._stage(blocks, second, third, stride=2)
        self.fc = nn.Linear(third, num_classes)
        init_convs(self)

    @staticmethod
    def _stage(blocks: int, in_channels: int, out_channels: int, stride: int) -> nn.ModuleList:
        first = BasicBlock(in_channels, out_channels, stride)
        return nn.ModuleList([first, *(BasicBlock(out_channels, out_channels, 1) for _ in range(blocks - 1))])

    def features(self, image: Tensor, preact: bool = False) -> Features:
        x = stem = F.relu(self.bn1(self.conv1(image)))
        ends, sums = [], []
        for layer in (self.layer1, self.layer2, self.layer3):
            x, total = run_stage(layer, x)
            ends.append(x)
            sums.append(total)
        pooled = average_pool(x)
        before_relu = tuple(sums) if preact else None
        return Features(self.fc(pooled), stem, tuple(ends), x, pooled, before_relu, self.last_layer())

    def feat_modules(self) -> list[nn.Module]:
        return [self.conv1, self.bn1, self.layer1, self.layer2, self.layer3]


for _depth in (8, 14, 20, 32, 44, 56, 110):
    register(f"resnet{_depth}", partial(ResNet, (_depth - 2) // 6, NARROW))
for _depth in (8, 32):
    register(f"resnet{_depth}x4", partial(ResNet, (_depth - 2) // 6, WIDE))
