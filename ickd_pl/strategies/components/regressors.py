"""Trainable blocks that several methods share: they bring the student's features to the teacher's shape."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.functional import relu


class ConvBN(nn.Module):
    """1x1 convolution without bias, then batch norm: (B, C_in, H, W) to (B, C_out, H, W). PyTorch's initialisation."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size=1, bias=False)
        self.bn = nn.BatchNorm2d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.bn(self.conv(x))
        return out


class LinearEmbedding(nn.Module):
    """Linear layer with bias on a vector: (B, D_in) to (B, D_out). PyTorch's default initialisation."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.linear = nn.Linear(in_features, out_features)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.linear(x.flatten(1))
        return out


def can_regress(source: tuple[int, ...], target: tuple[int, ...]) -> bool:
    """Whether :class:`ConvRegressor` can bring a map of one shape (C, H, W) to another."""
    (h, w), (th, tw) = source[1:], target[1:]
    return (h >= th and w >= tw) or (2 * h == th and 2 * w == tw)


class ConvRegressor(nn.Module):
    """Convolution with bias, batch norm and, if wanted, ReLU, from one map shape to another (RepDistiller's rule).

    The convolution is 3x3 with stride 2 where the source is twice as large as the target, a transposed 4x4 with
    stride 2 where it is half as large, else it has no padding and the kernel that the two sizes ask for (1x1 for
    equal sizes).

    Args:
        source: shape (C, H, W) of the input map.
        target: shape (C, H, W) of the output map.
        activation: end with a ReLU.

    Raises:
        ValueError: there is no such convolution (see :func:`can_regress`).
    """

    def __init__(self, source: tuple[int, ...], target: tuple[int, ...], activation: bool = True) -> None:
        super().__init__()
        if not can_regress(source, target):
            raise ValueError(f"no regressor from a map of shape {source} to {target}")
        (c, h, w), (tc, th, tw) = source, target
        self.conv: nn.Module
        if (h, w) == (2 * th, 2 * tw):
            self.conv = nn.Conv2d(c, tc, kernel_size=3, stride=2, padding=1)
        elif (2 * h, 2 * w) == (th, tw):
            self.conv = nn.ConvTranspose2d(c, tc, kernel_size=4, stride=2, padding=1)
        else:
            self.conv = nn.Conv2d(c, tc, kernel_size=(1 + h - th, 1 + w - tw))
        self.bn = nn.BatchNorm2d(tc)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.bn(self.conv(x))
        return relu(out) if self.activation else out
