"""Variational information distillation (VID)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from ickd_pl.checks import NonNegativeFloat, Number
from ickd_pl.data.batch import Batch, DataInfo
from ickd_pl.models.features import Features, FeatureShapes
from ickd_pl.strategies.base import LossStrategy, full_precision
from ickd_pl.strategies.components.compatibility import check_stage_count, expect, match_size
from ickd_pl.strategies.components.shapes import Maps, as_stages

EPS = 1e-5
Variance = Annotated[float, Number(f"a number above {EPS}", lambda value: value > EPS)]


class VariationalHead(nn.Module):
    """Gaussian over the teacher's map given the student's: a regressed mean and one trained variance per channel.

    Args:
        in_channels: channels of the student's map.
        out_channels: channels of the teacher's map.
        init_variance: variance at the start.
    """

    def __init__(self, in_channels: int, out_channels: int, init_variance: float) -> None:
        super().__init__()
        self.regressor = nn.Sequential(
            nn.Conv2d(in_channels, out_channels, 1, bias=False),
            nn.ReLU(),
            nn.Conv2d(out_channels, out_channels, 1, bias=False),
            nn.ReLU(),
            nn.Conv2d(out_channels, out_channels, 1, bias=False),
        )
        above = init_variance - EPS
        start = above if above > 50 else math.log(math.expm1(above))  # softplus(start) + EPS is the variance
        self.log_scale = nn.Parameter(torch.full((out_channels,), start))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.regressor(x)
        return out


@full_precision
def vid_loss(means: Maps, log_scales: Maps, teacher: Maps) -> Tensor:
    """Negative log likelihood of the teacher's maps under a Gaussian (without its constant), summed over the stages.

    ``0.5 * ((mean - teacher)^2 / variance + log variance)``, averaged over all elements, where the variance of a
    channel is ``softplus(log_scale) + 1e-5``.

    [0] Ahn et al., Variational Information Distillation for Knowledge Transfer, CVPR 2019,
    https://arxiv.org/abs/1904.05835
    [1] reference code: HobbitLong/RepDistiller, distiller_zoo/VID.py

    Args:
        means: regressed maps, each (B, C, H, W), one per stage; one map alone is one stage.
        log_scales: each (C,).
        teacher: maps, each (B, C, H, W). Gradients do not flow into them.

    Returns:
        A scalar, at least float32.

    Example:
        >>> import torch
        >>> x = torch.arange(48.0).reshape(2, 3, 2, 4)
        >>> round(vid_loss(x.sin(), torch.zeros(3), x.cos()).item(), 3)
        0.54
    """
    maps, scales, teachers = as_stages(
        "vid_loss", ("means", means, "B C H W"), ("log_scales", log_scales, "C"), ("teacher", teacher, "B C H W")
    )
    terms = []
    for mean, scale, target in zip(maps, scales, teachers, strict=True):
        variance = (softplus(scale) + EPS)[:, None, None]  # (C, 1, 1)
        terms.append(0.5 * ((mean - target.detach()).square() / variance + variance.log()).mean())
    return sum(terms[1:], start=terms[0])


@dataclass(eq=False)
class VID(LossStrategy):
    """Variational information distillation (VID) at every stage (see :func:`vid_loss`); RepDistiller's ``feat[1:-1]``.

    The published figures come from RepDistiller's networks, one feature per stage. ICKD's resnet, wrn and ResNet50 list
    one per block and drop the extra ones where the counts differ, so their VID is a different loss (equal only for
    networks with one block per stage, such as resnet8x4).

    The larger of two maps is averaged to the smaller one's size before the regressor. Regressors and variances are
    trained with the student, at its learning rate and weight decay, as in RepDistiller (mdistiller leaves the
    variances out of its optimizer).

    Args:
        weight: factor of the loss; 1 in RepDistiller's script, for all pairs.
        init_variance: variance of every channel at the start.
    """

    weight: NonNegativeFloat = 1.0
    init_variance: Variance = 5.0

    def maps_of(self, net: FeatureShapes) -> dict[str, tuple[int, ...]]:
        return net.stage_ends()

    def check(self, student: FeatureShapes, teacher: FeatureShapes) -> None:
        check_stage_count(self, student, teacher)

    def build(self, student: FeatureShapes, teacher: FeatureShapes, data: DataInfo) -> nn.Module:
        pairs = zip(student.stages, teacher.stages, strict=True)
        return nn.ModuleList(VariationalHead(s[0], t[0], self.init_variance) for s, t in pairs)

    def loss(self, student: Features, teacher: Features, batch: Batch, adapter: nn.Module | None) -> Tensor:
        heads = [expect(self, head, VariationalHead) for head in expect(self, adapter, nn.ModuleList)]
        pairs = [match_size(s, t) for s, t in zip(student.stages, teacher.stages, strict=True)]
        means = [head(s) for head, (s, _) in zip(heads, pairs, strict=True)]
        return vid_loss(means, [head.log_scale for head in heads], [t for _, t in pairs])
