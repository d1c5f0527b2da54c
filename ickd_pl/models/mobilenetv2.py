"""MobileNetV2 at half width: "MobileNetV2: Inverted Residuals and Linear Bottlenecks", Sandler et al., CVPR 2018."""

from __future__ import annotations

from torch import Tensor, nn

from ickd_pl.models.base import FeatureNet, average_pool, conv1x1, conv3x3, init_convs
from ickd_pl.models.features import Features
from ickd_pl.models.registry import register

WIDTH = 0.5
LAST_CHANNELS = 1280  # not scaled by the width
# expansion, channels at full width, blocks, stride of the first block
SETTINGS = (
    (1, 16, 1, 1),
    (6, 24, 2, 1),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
STAGE_ENDS = (1, 2, 4, 6)  # rows of SETTINGS whose outputs are features


def conv_bn_relu(conv: nn.Conv2d) -> list[nn.Module]:
    """A convolution with its batch norm and ReLU (not ReLU6)."""
    return [conv, nn.BatchNorm2d(conv.out_channels), nn.ReLU(inplace=True)]


class InvertedResidual(nn.Module):
    """1x1 expansion, depthwise 3x3, linear 1x1 projection; with a shortcut where the shape does not change."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = in_channels * expansion
        self.shortcut = stride == 1 and in_channels == out_channels
        self.conv = nn.Sequential(
            *conv_bn_relu(conv1x1(in_channels, hidden)),
            *conv_bn_relu(conv3x3(hidden, hidden, stride, groups=hidden)),
            conv1x1(hidden, out_channels),
            nn.BatchNorm2d(out_channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(x)
        return x + out if self.shortcut else out


class MobileNetV2(FeatureNet):
    """The benchmark's "mobile_half": width 0.5, stem at stride 2.

    Stage ends are linear (no ReLU), so the features before the ReLU are the same tensors. ``final`` is the last
    1x1 convolution's map after its ReLU. For a 32x32 image: stem 16x16x16, stages 12x16x16, 16x8x8, 48x4x4, 160x2x2,
    final 1280x2x2, pooled 1280.
    """

    classifier_path = "classifier.0"

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        channels = int(32 * WIDTH)
        self.conv1 = nn.Sequential(*conv_bn_relu(conv3x3(3, channels, stride=2)))
        rows: list[nn.Module] = []
        for expansion, full, blocks, stride in SETTINGS:
            out = int(full * WIDTH)
            first = InvertedResidual(channels, out, stride, expansion)
            rows.append(nn.Sequential(first, *(InvertedResidual(out, out, 1, expansion) for _ in range(blocks - 1))))
            channels = out
        self.blocks = nn.ModuleList(rows)
        self.conv2 = nn.Sequential(*conv_bn_relu(conv1x1(channels, LAST_CHANNELS)))
        linear = nn.Linear(LAST_CHANNELS, num_classes)
        self.classifier = nn.Sequential(linear)
        init_convs(self)
        nn.init.normal_(linear.weight, std=0.01)
        nn.init.zeros_(linear.bias)

    def features(self, image: Tensor, preact: bool = False) -> Features:
        x = stem = self.conv1(image)
        ends: list[Tensor] = []
        for row, block in enumerate(self.blocks):
            x = block(x)
            if row in STAGE_ENDS:
                ends.append(x)
        final = self.conv2(x)
        pooled = average_pool(final)
        stages = tuple(ends)
        before_relu = stages if preact else None
        return Features(self.classifier(pooled), stem, stages, final, pooled, before_relu, self.last_layer())

    def feat_modules(self) -> list[nn.Module]:
        return [self.conv1, self.blocks]


register("MobileNetV2", MobileNetV2)
