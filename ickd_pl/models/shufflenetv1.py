"""ShuffleNet, three groups: "ShuffleNet: An Extremely Efficient CNN for Mobile Devices", Zhang et al., CVPR 2018."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ickd_pl.models.base import FeatureNet, average_pool, conv1x1, conv3x3
from ickd_pl.models.features import Features
from ickd_pl.models.registry import register
from ickd_pl.models.resnet import run_stage

GROUPS = 3
STEM = 24


def channel_shuffle(x: Tensor, groups: int) -> Tensor:
    """Interleave the channels of the groups: (B, C, H, W) to the same shape."""
    batch, channels, height, width = x.shape
    return x.reshape(batch, groups, channels // groups, height, width).transpose(1, 2).reshape(x.shape)


class Unit(nn.Module):
    """Grouped 1x1, shuffle, depthwise 3x3, grouped 1x1; returns the map BEFORE the last ReLU.

    A unit of stride 2 concatenates its output with the average-pooled input, the others add the input.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.groups = 1 if in_channels == STEM else GROUPS
        branch = out_channels - in_channels if stride == 2 else out_channels
        mid = branch // 4
        self.conv1 = conv1x1(in_channels, mid, groups=self.groups)
        self.bn1 = nn.BatchNorm2d(mid)
        self.conv2 = conv3x3(mid, mid, stride, groups=mid)
        self.bn2 = nn.BatchNorm2d(mid)
        self.conv3 = conv1x1(mid, branch, groups=GROUPS)
        self.bn3 = nn.BatchNorm2d(branch)

    def forward(self, x: Tensor) -> Tensor:
        out = channel_shuffle(F.relu(self.bn1(self.conv1(x)), inplace=True), self.groups)
        out = F.relu(self.bn2(self.conv2(out)), inplace=True)
        out = self.bn3(self.conv3(out))
        if self.stride == 2:
            return torch.cat([out, F.avg_pool2d(x, 3, stride=2, padding=1)], dim=1)
        total: Tensor = out + x
        return total


class ShuffleNetV1(FeatureNet):
    """1x1 stem and three stages of 4, 8, 4 units.

    For a 32x32 image: stem 24x32x32, stages 240x16x16, 480x8x8, 960x4x4, pooled 960. PyTorch's default initialisation.
    """

    classifier_path = "linear"

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.conv1 = conv1x1(3, STEM)
        self.bn1 = nn.BatchNorm2d(STEM)
        self.layer1 = self._stage(4, STEM, 240)
        self.layer2 = self._stage(8, 240, 480)
        self.layer3 = self._stage(4, 480, 960)
        self.linear = nn.Linear(960, num_classes)

    @staticmethod
    def _stage(units: int, in_channels: int, out_channels: int) -> nn.ModuleList:
        first = Unit(in_channels, out_channels, stride=2)
        return nn.ModuleList([first, *(Unit(out_channels, out_channels, stride=1) for _ in range(units - 1))])

    def features(self, image: Tensor, preact: bool = False) -> Features:
        x = stem = F.relu(self.bn1(self.conv1(image)))
        ends, before = [], []
        for layer in (self.layer1, self.layer2, self.layer3):
            x, total = run_stage(layer, x)
            ends.append(x)
            before.append(total)
        pooled = average_pool(x)
        before_relu = tuple(before) if preact else None
        return Features(self.linear(pooled), stem, tuple(ends), x, pooled, before_relu, self.last_layer())

    def feat_modules(self) -> list[nn.Module]:
        return [self.conv1, self.bn1, self.layer1, self.layer2, self.layer3]


register("ShuffleV1", ShuffleNetV1)
