"""Factor transfer (FT)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss, normalize

from ickd_pl.checks import NonNegativeFloat, NonNegativeInt, PositiveFloat
from ickd_pl.data.batch import Batch, DataInfo
from ickd_pl.models.features import Features, FeatureShapes
from ickd_pl.strategies.base import LossStrategy, full_precision
from ickd_pl.strategies.components.compatibility import expect, match_size
from ickd_pl.strategies.components.shapes import check_shapes

# RepDistiller's rule for the first stage: students of these names (not ResNet50) have this learning rate in it.
SLOW_STUDENTS, SLOW_LR = ("resnet", "wrn_"), 0.01


def _layers(*convolutions: nn.Module, batch_norm: bool) -> nn.Sequential:
    """Every convolution followed by batch norm (or nothing) and a leaky ReLU."""
    layers: list[nn.Module] = []
    for conv in convolutions:
        norm = nn.BatchNorm2d(int(conv.out_channels)) if batch_norm else nn.Identity()  # type: ignore[arg-type]
        layers += [conv, norm, nn.LeakyReLU(0.1)]
    return nn.Sequential(*layers)


def _encoder(in_channels: int, out_channels: int, batch_norm: bool) -> nn.Sequential:
    return _layers(
        nn.Conv2d(in_channels, in_channels, 3, padding=1),
        nn.Conv2d(in_channels, out_channels, 3, padding=1),
        nn.Conv2d(out_channels, out_channels, 3, padding=1),
        batch_norm=batch_norm,
    )


class Paraphraser(nn.Module):
    """Autoencoder on the teacher's map, without batch norm: (B, C, H, W) to its factor (B, F, H, W) and back."""

    def __init__(self, channels: int, factors: int) -> None:
        super().__init__()
        self.encoder = _encoder(channels, factors, batch_norm=False)
        self.decoder = _layers(
            nn.ConvTranspose2d(factors, factors, 3, padding=1),
            nn.ConvTranspose2d(factors, channels, 3, padding=1),
            nn.ConvTranspose2d(channels, channels, 3, padding=1),
            batch_norm=False,
        )

    def forward(self, x: Tensor) -> Tensor:
        """Reconstruction of the map."""
        out: Tensor = self.decoder(self.encoder(x))
        return out


class Translator(nn.Module):
    """Encoder of the student's map, with batch norm: (B, C, H, W) to its factor (B, F, H, W)."""

    def __init__(self, channels: int, factors: int) -> None:
        super().__init__()
        self.encoder = _encoder(channels, factors, batch_norm=True)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.encoder(x)
        return out


class FactorAdapter(nn.Module):
    """Paraphraser of the teacher and translator of the student."""

    def __init__(self, student_channels: int, teacher_channels: int, factors: int) -> None:
        super().__init__()
        self.paraphraser = Paraphraser(teacher_channels, factors)
        self.translator = Translator(student_channels, factors)


def factor_map(x: Tensor) -> Tensor:
    """The channel mean of a factor's squares, of unit length for every image: (B, F, H, W) to (B, H*W)."""
    return normalize(x.square().mean(dim=1).flatten(1))


@full_precision
def ft_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean absolute difference of the normalised factors.

    [0] Kim, Park, Kwak, Paraphrasing Complex Network: Network Compression via Factor Transfer, NeurIPS 2018,
    https://arxiv.org/abs/1802.04977
    [1] reference code: HobbitLong/RepDistiller, distiller_zoo/FT.py

    Code and paper differ: the paper normalises the flattened factor, the code first averages its squares over the
    channels. This follows the code.

    Args:
        student: factor, shape (B, F, H, W).
        teacher: factor, shape (B, F', H', W'); the larger one is averaged to the smaller one's size. Gradients do not
            flow into it.

    Returns:
        A scalar, at least float32.

    Example:
        >>> import torch
        >>> x = torch.arange(48.0).reshape(2, 3, 2, 4)
        >>> round(ft_loss(x.sin(), x.cos()).item(), 3)
        0.142
    """
    check_shapes("ft_loss", ("student", student, "B F H W"), ("teacher", teacher, "B F' H' W'"))
    s, t = match_size(student, teacher.detach())
    return (factor_map(s) - factor_map(t)).abs().mean()


@full_precision
def reconstruction_loss(reconstruction: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared error of the paraphraser, both (B, C, H, W)."""
    check_shapes("reconstruction_loss", ("reconstruction", reconstruction, "B ..."), ("teacher", teacher, "B ..."))
    return mse_loss(reconstruction, teacher.detach())


@dataclass(eq=False)
class FT(LossStrategy):
    """Factor transfer (FT) of the last stage's map (see :func:`ft_loss`): RepDistiller's ``feat[-2]``, not ``final``.

    First stage: the paraphraser learns to reconstruct the teacher's map; the student does not take part. Main stage:
    the translator learns, with the student, the factor of the frozen paraphraser.

    RepDistiller trains the paraphraser at 0.01 for resnet and wrn students, else at the student's learning rate: 0.01
    again for the mobile networks, 0.05 for vgg. So does this, by the student's name, where ``pretrain_lr`` is None.

    Args:
        weight: factor of the loss; 200 in RepDistiller's script, for all pairs.
        rate: channels of a factor over those of the teacher's map.
        pretrain_epochs: length of the first stage.
        pretrain_lr: its learning rate; None is RepDistiller's for the student, as above.
    """

    weight: NonNegativeFloat = 200.0
    rate: PositiveFloat = 0.5
    pretrain_epochs: NonNegativeInt = 30
    pretrain_lr: PositiveFloat | None = None

    def first_stage_lr(self, student: str) -> float | None:
        if self.pretrain_lr is None and student.startswith(SLOW_STUDENTS):
            return SLOW_LR
        return self.pretrain_lr

    def maps_of(self, net: FeatureShapes) -> dict[str, tuple[int, ...]]:
        return {"the last stage": net.stages[-1]}

    def build(self, student: FeatureShapes, teacher: FeatureShapes, data: DataInfo) -> nn.Module:
        channels = teacher.stages[-1][0]
        return FactorAdapter(student.stages[-1][0], channels, max(1, int(channels * self.rate)))

    def loss(self, student: Features, teacher: Features, batch: Batch, adapter: nn.Module | None) -> Tensor:
        parts = expect(self, adapter, FactorAdapter)
        with torch.no_grad():
            target = parts.paraphraser.encoder(teacher.stages[-1])
        return ft_loss(parts.translator(student.stages[-1]), target)

    def pretrain_loss(self, student: Features, teacher: Features, batch: Batch, adapter: nn.Module | None) -> Tensor:
        reconstruction = expect(self, adapter, FactorAdapter).paraphraser(teacher.stages[-1].detach())
        return reconstruction_loss(reconstruction, teacher.stages[-1])

    def pretrain_modules(self, student: nn.Module, adapter: nn.Module | None) -> list[nn.Module]:
        return [expect(self, adapter, FactorAdapter).paraphraser]

    def frozen_in_main(self, adapter: nn.Module | None) -> list[nn.Module]:
        return [expect(self, adapter, FactorAdapter).paraphraser]
