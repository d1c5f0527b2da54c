"""VGG with batch norm for 32x32 images: "Very Deep Convolutional Networks ...", Simonyan and Zisserman, ICLR 2015."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

from ickd_pl.models.base import FeatureNet, init_convs
from ickd_pl.models.features import Features
from ickd_pl.models.registry import register

WIDTHS = (64, 128, 256, 512, 512)


def conv_block(convs: int, in_channels: int, out_channels: int) -> nn.Sequential:
    """3x3 convolutions (with bias) and batch norms, ReLUs in between: the caller applies the last ReLU."""
    layers: list[nn.Module] = []
    for index in range(convs):
        layers += [nn.ReLU(inplace=True)] if index else []
        layers += [nn.Conv2d(in_channels if index == 0 else out_channels, out_channels, 3, padding=1)]
        layers += [nn.BatchNorm2d(out_channels)]
    return nn.Sequential(*layers)


class VGG(FeatureNet):
    """Five blocks of convolutions, global average pooling and ONE linear layer.

    A 2x2 max pool follows blocks 0, 1, 2, and block 3 only for images 64 pixels high.
    For a 32x32 image: stem (block 0) 64x32x32, stages 128x16x16, 256x8x8, 512x4x4, 512x4x4, pooled 512.

    Args:
        convs: convolutions in each of the five blocks.
        num_classes: K.
    """

    classifier_path = "classifier"

    def __init__(self, convs: Sequence[int], num_classes: int) -> None:
        super().__init__()
        channels = (3, *WIDTHS)
        self.block0, self.block1, self.block2, self.block3, self.block4 = (
            conv_block(convs[i], channels[i], channels[i + 1]) for i in range(5)
        )
        self.classifier = nn.Linear(WIDTHS[-1], num_classes)
        init_convs(self)
        nn.init.normal_(self.classifier.weight, std=0.01)
        nn.init.zeros_(self.classifier.bias)

    def features(self, image: Tensor, preact: bool = False) -> Features:
        x = stem = F.relu(self.block0(image))
        ends, before = [], []
        for index, block in enumerate((self.block1, self.block2, self.block3, self.block4)):
            if index < 3 or image.shape[-2] == 64:
                x = F.max_pool2d(x, 2)
            normed = block(x)
            x = F.relu(normed)
            ends.append(x)
            before.append(normed)
        pooled = F.adaptive_avg_pool2d(x, 1).flatten(1)
        before_relu = tuple(before) if preact else None
        return Features(self.classifier(pooled), stem, tuple(ends), x, pooled, before_relu, self.last_layer())

    def feat_modules(self) -> list[nn.Module]:
        return [self.block0, self.block1, self.block2, self.block3, self.block4]


for _name, _convs in {
    "vgg8": (1, 1, 1, 1, 1),
    "vgg11": (1, 1, 2, 2, 2),
    "vgg13": (2, 2, 2, 2, 2),
    "vgg16": (2, 2, 3, 3, 3),
    "vgg19": (2, 2, 4, 4, 4),
}.items():
    register(_name, partial(VGG, _convs))
