"""Wide residual network: "Wide Residual Networks", Zagoruyko and Komodakis, BMVC 2016."""

from __future__ import annotations

from functools import partial
from itertools import product

import torch.nn.functional as F
from torch import Tensor, nn

from ickd_pl.models.base import FeatureNet, average_pool, conv1x1, conv3x3, init_convs
from ickd_pl.models.features import Features
from ickd_pl.models.registry import register


class WideBlock(nn.Module):
    """Pre-activation block; returns the raw sum, and its input after ``bn1``, which is used as a feature.

    The shortcut is a 1x1 convolution of the activated input where the width changes, else the raw input.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = conv3x3(in_channels, out_channels, stride)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.conv2 = conv3x3(out_channels, out_channels)
        self.convShortcut = conv1x1(in_channels, out_channels, stride) if in_channels != out_channels else None

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        normed = self.bn1(x)
        active = F.relu(normed)
        out = self.conv2(F.relu(self.bn2(self.conv1(active)), inplace=True))
        return out + (x if self.convShortcut is None else self.convShortcut(active)), normed


class Group(nn.Module):
    """Blocks of one width; a container that keeps the state dict keys of the published teachers."""

    def __init__(self, blocks: int, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        first = WideBlock(in_channels, out_channels, stride)
        self.layer = nn.ModuleList([first, *(WideBlock(out_channels, out_channels, 1) for _ in range(blocks - 1))])


class WideResNet(FeatureNet):
    """``wrn_D_k``: depth D = 6n + 4, three groups of n blocks, widths 16k, 32k, 64k, strides 1, 2, 2, no dropout.

    The stem and the stage ends are raw sums, before batch norm and ReLU. Before-ReLU features are stage
    ends after the next batch norm: the next group's first, or the network's last. ``final`` is the ReLU of that last.

    ICKD's variant calls the first batch norm of every block twice in a training step, so that its running statistics
    move twice per step, by 0.19 in all; here once, by 0.1, as in RepDistiller. Outputs in training mode are the same,
    those in eval mode differ slightly.

    For a 32x32 image: stem 16x32x32, stages 16kx32x32, 32kx16x16, 64kx8x8, final 64kx8x8, pooled 64k.
    """

    classifier_path = "fc"

    def __init__(self, depth: int, width: int, num_classes: int) -> None:
        super().__init__()
        blocks = (depth - 4) // 6
        self.conv1 = conv3x3(3, 16)
        self.block1 = Group(blocks, 16, 16 * width, stride=1)
        self.block2 = Group(blocks, 16 * width, 32 * width, stride=2)
        self.block3 = Group(blocks, 32 * width, 64 * width, stride=2)
        self.bn1 = nn.BatchNorm2d(64 * width)
        self.fc = nn.Linear(64 * width, num_classes)
        init_convs(self)
        nn.init.zeros_(self.fc.bias)

    def features(self, image: Tensor, preact: bool = False) -> Features:
        x = stem = self.conv1(image)
        ends: list[Tensor] = []
        firsts: list[Tensor] = []  # each group's input after that group's first batch norm
        for group in (self.block1, self.block2, self.block3):
            for index, block in enumerate(group.layer):
                x, normed = block(x)
                if index == 0:
                    firsts.append(normed)
            ends.append(x)
        last = self.bn1(x)
        final = F.relu(last)
        pooled = average_pool(final)
        before_relu = (*firsts[1:], last) if preact else None
        return Features(self.fc(pooled), stem, tuple(ends), final, pooled, before_relu, self.last_layer())

    def feat_modules(self) -> list[nn.Module]:
        return [self.conv1, self.block1, self.block2, self.block3]


for _depth, _width in product((16, 40), (1, 2)):
    register(f"wrn_{_depth}_{_width}", partial(WideResNet, _depth, _width))
