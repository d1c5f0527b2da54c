"""ShuffleNetV2 at width 1: "ShuffleNet V2: Practical Guidelines for Efficient CNN ...", Ma et al., ECCV 2018."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ickd_pl.models.base import FeatureNet, average_pool, conv1x1, conv3x3
from ickd_pl.models.features import Features
from ickd_pl.models.registry import register
from ickd_pl.models.shufflenetv1 import channel_shuffle

STEM = 24
LAST_CHANNELS = 1024


class BasicUnit(nn.Module):
    """Keeps one half of the channels and transforms the other; returns both halves, the second BEFORE its ReLU."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.conv1 = conv1x1(half, half)
        self.bn1 = nn.BatchNorm2d(half)
        self.conv2 = conv3x3(half, half, groups=half)
        self.bn2 = nn.BatchNorm2d(half)
        self.conv3 = conv1x1(half, half)
        self.bn3 = nn.BatchNorm2d(half)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        kept, out = x.chunk(2, dim=1)
        out = F.relu(self.bn1(self.conv1(out)), inplace=True)
        out = self.bn2(self.conv2(out))
        return kept, self.bn3(self.conv3(out))


class DownUnit(nn.Module):
    """Halves the spatial size and transforms both halves; returns both, the second BEFORE its ReLU."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        half = out_channels // 2
        self.conv1 = conv3x3(in_channels, in_channels, stride=2, groups=in_channels)
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv2 = conv1x1(in_channels, half)
        self.bn2 = nn.BatchNorm2d(half)
        self.conv3 = conv1x1(in_channels, half)
        self.bn3 = nn.BatchNorm2d(half)
        self.conv4 = conv3x3(half, half, stride=2, groups=half)
        self.bn4 = nn.BatchNorm2d(half)
        self.conv5 = conv1x1(half, half)
        self.bn5 = nn.BatchNorm2d(half)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        left = self.bn1(self.conv1(x))
        left = F.relu(self.bn2(self.conv2(left)), inplace=True)
        right = F.relu(self.bn3(self.conv3(x)), inplace=True)
        right = self.bn4(self.conv4(right))
        return left, self.bn5(self.conv5(right))


class ShuffleNetV2(FeatureNet):
    """1x1 stem (no max pool), three stages of one down unit and 3, 7, 3 basic units, 1x1 convolution to 1024.

    Features before the ReLU join the two halves of a stage's last unit without the channel shuffle. ``final`` is the
    last 1x1 convolution's map after its ReLU. For a 32x32 image: stem 24x32x32, stages 116x16x16, 232x8x8, 464x4x4,
    final 1024x4x4, pooled 1024. PyTorch's default initialisation.
    """

    classifier_path = "linear"

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.conv1 = conv1x1(3, STEM)
        self.bn1 = nn.BatchNorm2d(STEM)
        self.layer1 = self._stage(3, STEM, 116)
        self.layer2 = self._stage(7, 116, 232)
        self.layer3 = self._stage(3, 232, 464)
        self.conv2 = conv1x1(464, LAST_CHANNELS)
        self.bn2 = nn.BatchNorm2d(LAST_CHANNELS)
        self.linear = nn.Linear(LAST_CHANNELS, num_classes)

    @staticmethod
    def _stage(basic_units: int, in_channels: int, out_channels: int) -> nn.ModuleList:
        first = DownUnit(in_channels, out_channels)
        return nn.ModuleList([first, *(BasicUnit(out_channels) for _ in range(basic_units))])

    def features(self, image: Tensor, preact: bool = False) -> Features:
        x = stem = F.relu(self.bn1(self.conv1(image)))
        ends: list[Tensor] = []
        before: list[Tensor] = []
        for layer in (self.layer1, self.layer2, self.layer3):
            kept = normed = x
            for unit in layer:
                kept, normed = unit(x)
                x = channel_shuffle(torch.cat([kept, F.relu(normed)], dim=1), groups=2)
            ends.append(x)
            if preact:
                before.append(torch.cat([kept, normed], dim=1))
        final = F.relu(self.bn2(self.conv2(x)))
        pooled = average_pool(final)
        before_relu = tuple(before) if preact else None
        return Features(self.linear(pooled), stem, tuple(ends), final, pooled, before_relu, self.last_layer())

    def feat_modules(self) -> list[nn.Module]:
        return [self.conv1, self.bn1, self.layer1, self.layer2, self.layer3]


register("ShuffleV2", ShuffleNetV2)
