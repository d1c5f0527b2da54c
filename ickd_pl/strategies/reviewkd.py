"""Knowledge review (ReviewKD)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, mse_loss

from ickd_pl.checks import NonNegativeFloat, NonNegativeInt
from ickd_pl.data.batch import Batch, DataInfo
from ickd_pl.models.features import Features, FeatureShapes
from ickd_pl.strategies.base import LossStrategy, full_precision
from ickd_pl.strategies.components.compatibility import average_to, check_stage_count, expect
from ickd_pl.strategies.components.shapes import Maps, as_stages
from ickd_pl.strategies.components.warmup import warmed_up

WIDEST = 512
GRIDS = (4, 2, 1)


@full_precision
def reviewkd_loss(student: Maps, teacher: Maps) -> Tensor:
    """The hierarchical context loss: mean squared errors of maps and of their averages on coarser grids.

    Summed over the levels: ``(MSE + sum over j of 2^-j MSE on the j-th grid) / (1 + sum over j of 2^-j)``, the grids
    being those of 4x4, 2x2 and 1x1 cells with fewer cells than the map has rows.

    [0] Chen, Liu, Zhao, Jia, Distilling Knowledge via Knowledge Review, CVPR 2021
    [1] reference code: dvlab-research/ReviewKD (commit cede6ea) and mdistiller (commit a08d46f), ReviewKD.py

    Args:
        student: maps (B, C, H, W), or one map.
        teacher: likewise, of the same shapes; gradients do not flow into them.

    Returns:
        A scalar, at least float32.

    Example:
        >>> import torch
        >>> x = torch.arange(24.0).reshape(2, 3, 2, 2)
        >>> round(reviewkd_loss(x.sin(), x.cos()).item(), 3)
        0.729
    """
    students, teachers = as_stages("reviewkd_loss", ("student", student, "B C H W"), ("teacher", teacher, "B C H W"))
    terms = []
    for s, t in zip(students, teachers, strict=True):
        loss, weight, sum_of_weights = mse_loss(s, t.detach()), 1.0, 1.0
        for cells in GRIDS:
            if cells < s.shape[2]:
                weight /= 2
                sum_of_weights += weight
                grid = (cells, min(cells, s.shape[3]))
                loss = loss + weight * mse_loss(average_to(s, grid), average_to(t.detach(), grid))
        terms.append(loss / sum_of_weights)
    return sum(terms[1:], start=terms[0])


class Fusion(nn.Module):
    """Fuses a student's map with the one from the level below, and brings it to the teacher's shape.

    Args:
        channels: of the student's map.
        middle: of the fused map.
        target: the teacher's shape (C, H, W).
        deepest: there is no level below.
    """

    def __init__(self, channels: int, middle: int, target: tuple[int, ...], deepest: bool) -> None:
        super().__init__()
        self.size = target[1:]
        self.reduce = nn.Sequential(nn.Conv2d(channels, middle, 1, bias=False), nn.BatchNorm2d(middle))
        self.expand = nn.Sequential(nn.Conv2d(middle, target[0], 3, padding=1, bias=False), nn.BatchNorm2d(target[0]))
        self.attention = None if deepest else nn.Conv2d(2 * middle, 2, 1)
        for module in (*self.reduce, *self.expand):
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_uniform_(module.weight, a=1)

    def forward(self, x: Tensor, below: Tensor | None) -> tuple[Tensor, Tensor]:
        """The map in the teacher's shape, (B, C_t, H_t, W_t), and the fused one for the next level."""
        x = self.reduce(x)
        if self.attention is not None and below is not None:
            below = interpolate(below, x.shape[2:], mode="nearest")
            share = self.attention(torch.cat([x, below], dim=1)).sigmoid()
            x = x * share[:, :1] + below * share[:, 1:]
        if x.shape[2:] != self.size:
            x = interpolate(x, self.size, mode="nearest")
        return self.expand(x), x


@dataclass(eq=False)
class ReviewKD(LossStrategy):
    """Knowledge review (ReviewKD): fused stages of the student against the teacher's (see :func:`reviewkd_loss`).

    The levels are the stage ends, the student's after the ReLU and the teacher's before it, and the pooled vectors as
    maps of one position. From deep to shallow a chain of trained modules fuses each of the student's maps with the
    fused one of the level below. The weight warms up linearly.

    The authors' code counts epochs from 0 in the warm-up, mdistiller's from 1 as here; the authors' teacher is in
    training mode. Their printed numbers are of another recipe: batch 128, rate 0.1, Nesterov momentum.

    Args:
        weight: factor of the loss. The authors' by pair: 5 for wrn_40_2/wrn_16_2, wrn_40_2/wrn_40_1,
            wrn_40_2/ShuffleV1, resnet32x4/resnet8x4 and resnet32x4/ShuffleV1; 8 for resnet32x4/ShuffleV2; 0.6 for
            resnet56/resnet20; 1 for resnet110/resnet32. Others are not published.
        warmup_epochs: the weight in main epoch e is ``weight * min(e / warmup_epochs, 1)``; 0 is no warm-up.
    """

    needs_preact: ClassVar[bool] = True

    weight: NonNegativeFloat = 1.0
    warmup_epochs: NonNegativeInt = 20

    def maps_of(self, net: FeatureShapes) -> dict[str, tuple[int, ...]]:
        return net.stage_ends()

    def vectors_of(self, net: FeatureShapes) -> dict[str, tuple[int, ...]]:
        return {"the pooled feature": net.pooled}

    def check(self, student: FeatureShapes, teacher: FeatureShapes) -> None:
        check_stage_count(self, student, teacher)

    def build(self, student: FeatureShapes, teacher: FeatureShapes, data: DataInfo) -> nn.Module:
        own = [*(shape[0] for shape in student.stages), student.pooled[0]]
        taught = [*(teacher.preact or teacher.stages), (teacher.pooled[0], 1, 1)]
        middle = min(WIDEST, student.pooled[0])
        levels = reversed(list(zip(own, taught, strict=True)))
        return nn.ModuleList(Fusion(c, middle, target, deepest=i == 0) for i, (c, target) in enumerate(levels))

    def weight_at(self, epoch: int | None) -> float:
        return warmed_up(self.weight, epoch, self.warmup_epochs)

    def loss(self, student: Features, teacher: Features, batch: Batch, adapter: nn.Module | None) -> Tensor:
        if teacher.preact is None:
            raise RuntimeError("ReviewKD needs the teacher's features with preact=True")
        chain, below, fused = expect(self, adapter, nn.ModuleList), None, []
        for fuse, x in zip(chain, levels(student.stages, student)[::-1], strict=True):
            found, below = fuse(x, below)
            fused.append(found)
        return reviewkd_loss(fused, levels(teacher.preact, teacher)[::-1])


def levels(stages: Sequence[Tensor], features: Features) -> list[Tensor]:
    """Maps, shallow to deep, and then the pooled vector as a map (B, D, 1, 1)."""
    return [*stages, features.pooled.flatten(1)[:, :, None, None]]
