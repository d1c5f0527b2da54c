"""ResNet-50 with bottleneck blocks: "Deep Residual Learning for Image Recognition", He et al., CVPR 2016."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from ickd_pl.models.base import FeatureNet, conv1x1, conv3x3, init_convs
from ickd_pl.models.features import Features
from ickd_pl.models.registry import register
from ickd_pl.models.resnet import run_stage

EXPANSION = 4


class Bottleneck(nn.Module):
    """1x1, 3x3 (with the stride) and 1x1 convolutions and a shortcut; returns the sum BEFORE the last ReLU."""

    def __init__(self, in_channels: int, width: int, stride: int) -> None:
        super().__init__()
        out_channels = EXPANSION * width
        self.conv1 = conv1x1(in_channels, width)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = conv3x3(width, width, stride)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = conv1x1(width, out_channels)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            self.shortcut = nn.Sequential(conv1x1(in_channels, out_channels, stride), nn.BatchNorm2d(out_channels))

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)), inplace=True)
        out = F.relu(self.bn2(self.conv2(out)), inplace=True)
        total: Tensor = self.bn3(self.conv3(out)) + self.shortcut(x)
        return total


class ResNet50(FeatureNet):
    """3x3 stem at stride 1 (no max pool) and four stages of 3, 4, 6, 3 bottlenecks.

    For a 32x32 image: stem 64x32x32, stages 256x32x32, 512x16x16, 1024x8x8, 2048x4x4, pooled 2048.
    """

    classifier_path = "linear"

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.conv1 = conv3x3(3, 64)
        self.bn1 = nn.BatchNorm2d(64)
        self.layer1 = self._stage(3, 64, 64, stride=1)
        self.layer2 = self._stage(4, 256, 128, stride=2)
        self.layer3 = self._stage(6, 512, 256, stride=2)
        self.layer4 = self._stage(3, 1024, 512, stride=2)
        self.linear = nn.Linear(2048, num_classes)
        init_convs(self)

    @staticmethod
    def _stage(blocks: int, in_channels: int, width: int, stride: int) -> nn.ModuleList:
        first = Bottleneck(in_channels, width, stride)
        return nn.ModuleList([first, *(Bottleneck(EXPANSION * width, width, 1) for _ in range(blocks - 1))])

    def features(self, image: Tensor, preact: bool = False) -> Features:
        x = stem = F.relu(self.bn1(self.conv1(image)))
        ends, sums = [], []
        for layer in (self.layer1, self.layer2, self.layer3, self.layer4):
            x, total = run_stage(layer, x)
            ends.append(x)
            sums.append(total)
        pooled = F.adaptive_avg_pool2d(x, 1).flatten(1)
        before_relu = tuple(sums) if preact else None
        return Features(self.linear(pooled), stem, tuple(ends), x, pooled, before_relu, self.last_layer())

    def feat_modules(self) -> list[nn.Module]:
        return [self.conv1, self.bn1, self.layer1, self.layer2, self.layer3, self.layer4]


register("ResNet50", ResNet50)
