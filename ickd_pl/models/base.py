"""Base class of the benchmark's networks, and layers that they share."""

from __future__ import annotations

from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from ickd_pl.models.features import Classifier, Features


class FeatureNet(nn.Module):
    """A classifier that can also return its features. ``forward`` returns logits: (B, 3, H, W) to (B, K).

    Attributes:
        name: its name for :func:`ickd_pl.get_model`.
        classifier_path: path of the linear layer from :attr:`Features.pooled` to the logits, which :meth:`features`
            hands out by :meth:`last_layer`; empty where there is none, so that no method can apply it.
    """

    name: str = ""
    classifier_path: ClassVar[str] = ""

    def last_linear(self) -> nn.Linear | None:
        """The layer at ``classifier_path``; None without one."""
        layer = self.get_submodule(self.classifier_path) if self.classifier_path else None
        return layer if isinstance(layer, nn.Linear) else None

    def last_layer(self) -> Classifier | None:
        """The layer from the pooled vector to the logits, for :attr:`Features.classifier`; None without one."""
        return Classifier.of(self.last_linear())

    def features(self, image: Tensor, preact: bool = False) -> Features:
        """One forward pass.

        Args:
            image: (B, 3, H, W), normalised.
            preact: also return the stage ends before their last ReLU.
        """
        raise NotImplementedError

    def feat_modules(self) -> list[nn.Module]:
        """The modules up to the last stage, without the classifier; two-stage methods train them first."""
        raise NotImplementedError

    def forward(self, image: Tensor) -> Tensor:
        return self.features(image).logits


def average_pool(x: Tensor) -> Tensor:
    """Global average: (B, C, H, W) to (B, C). One window over the whole map, so any image size works."""
    return F.avg_pool2d(x, x.shape[-2:]).flatten(1)


def conv3x3(in_channels: int, out_channels: int, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    """3x3 convolution without bias that keeps the size at stride 1."""
    return nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, groups=groups, bias=False)


def conv1x1(in_channels: int, out_channels: int, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    """1x1 convolution without bias."""
    return nn.Conv2d(in_channels, out_channels, 1, stride=stride, groups=groups, bias=False)


def init_convs(net: nn.Module) -> None:
    """Initialise convolutions from N(0, 2 / (k * k * out_channels)), bias 0 (He et al., ICCV 2015, fan-out form).

    Batch norms keep PyTorch's default (1 and 0). For depthwise convolutions out_channels is not divided by the groups.
    """
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
