"""Attention transfer (AT)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn.functional import mse_loss, normalize

from ickd_pl.checks import NonNegativeFloat, PositiveFloat
from ickd_pl.data.batch import Batch
from ickd_pl.models.features import Features, FeatureShapes
from ickd_pl.strategies.base import LossStrategy, full_precision
from ickd_pl.strategies.components.compatibility import check_stage_count, match_size
from ickd_pl.strategies.components.shapes import Maps, as_stages


@full_precision
def attention_map(x: Tensor, power: float = 2.0) -> Tensor:
    """Where a map is active: the channel mean of its absolute values to a power, of unit length for every image.

    Args:
        x: feature map, shape (B, C, H, W).
        power: exponent p.

    Returns:
        Shape (B, H*W).
    """
    strength = x.square() if power == 2 else x.abs().pow(power)
    return normalize(strength.mean(dim=1).flatten(1))


@full_precision
def at_loss(student: Maps, teacher: Maps, power: float = 2.0) -> Tensor:
    """Mean squared error of the attention maps, summed over the stages.

    [0] Zagoruyko, Komodakis, Paying More Attention to Attention, ICLR 2017, https://arxiv.org/abs/1612.03928
    [1] reference code: HobbitLong/RepDistiller, distiller_zoo/AT.py

    Code and paper differ: the mean over the B * H * W entries of unit vectors makes the value small, hence the weight
    of 1000; the paper takes the norm of the difference. The code silently drops extra stages, this raises.

    Args:
        student: maps of shape (B, C, H, W), one per stage; one map alone is one stage.
        teacher: as many maps; channels may differ, a larger map is averaged to the smaller one's size. Gradients do
            not flow into them.
        power: exponent of the activations.

    Returns:
        A scalar, at least float32.

    Example:
        >>> import torch
        >>> x = torch.arange(48.0).reshape(2, 3, 2, 4)
        >>> round(at_loss(x.sin(), x.cos()).item(), 4)
        0.0226
    """
    students, teachers = as_stages("at_loss", ("student", student, "B C H W"), ("teacher", teacher, "B C' H' W'"))
    terms = []
    for s, t in zip(students, teachers, strict=True):
        q_s, q_t = (attention_map(x, power) for x in match_size(s, t.detach()))  # (B, H*W)
        terms.append(mse_loss(q_s, q_t))
    return sum(terms[1:], start=terms[0])


@dataclass(eq=False)
class AT(LossStrategy):
    """Attention transfer (AT) at every stage (see :func:`at_loss`); RepDistiller's ``feat[1:-1]``.

    The published figures come from RepDistiller's networks, one feature per stage. ICKD's resnet, wrn and ResNet50 list
    one per block and drop the extra ones where the counts differ, so their AT is a different loss (equal only for
    networks with one block per stage, such as resnet8x4).

    Args:
        weight: factor of the loss; 1000 in RepDistiller's script, for all pairs.
        power: exponent of the activations.
    """

    weight: NonNegativeFloat = 1000.0
    power: PositiveFloat = 2.0

    def maps_of(self, net: FeatureShapes) -> dict[str, tuple[int, ...]]:
        return net.stage_ends()

    def check(self, student: FeatureShapes, teacher: FeatureShapes) -> None:
        check_stage_count(self, student, teacher)

    def loss(self, student: Features, teacher: Features, batch: Batch, adapter: nn.Module | None) -> Tensor:
        return at_loss(student.stages, teacher.stages, self.power)
