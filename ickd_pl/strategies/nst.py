"""Neuron selectivity transfer (NST)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn.functional import normalize

from ickd_pl.checks import NonNegativeFloat
from ickd_pl.data.batch import Batch
from ickd_pl.models.features import Features, FeatureShapes
from ickd_pl.strategies.base import LossStrategy, full_precision
from ickd_pl.strategies.components.compatibility import check_stage_count, match_size
from ickd_pl.strategies.components.shapes import Maps, as_stages


def mean_kernel(a: Tensor, b: Tensor) -> Tensor:
    """Mean of the squared inner products of all channels of one map with all channels of another.

    Args:
        a: shape (B, C, H*W).
        b: shape (B, C', H*W).

    Returns:
        A scalar.
    """
    if a.shape[2] >= min(a.shape[1], b.shape[1]):
        return (a @ b.transpose(1, 2)).square().mean()  # of (B, C, C')
    # The same sum over the smaller matrices (B, H*W, H*W): |A B^T|^2 = <A^T A, B^T B>.
    total = ((a.transpose(1, 2) @ a) * (b.transpose(1, 2) @ b)).sum()
    return total / (len(a) * a.shape[1] * b.shape[1])


@full_precision
def nst_loss(student: Maps, teacher: Maps) -> Tensor:
    """Squared maximum mean discrepancy of the channels, kernel ``(a . b)^2``, summed over the stages.

    A channel is its map as a vector of unit length. Per stage, with k for the mean kernel over the batch and all pairs
    of channels: ``k(teacher, teacher) + k(student, student) - 2 k(student, teacher)``.

    [0] Huang, Wang, Like What You Like: Knowledge Distill via Neuron Selectivity Transfer, 2017,
    https://arxiv.org/abs/1707.01219
    [1] reference code: HobbitLong/RepDistiller, distiller_zoo/NST.py

    The code multiplies all pairs of channels element by element, a tensor of B * C * C * H * W numbers. The sums over
    the positions are matrix products; they give the same values in a fraction of the time and memory.

    Args:
        student: maps of shape (B, C, H, W), one per stage; one map alone is one stage.
        teacher: as many maps; channels may differ, a larger map is averaged to the smaller one's size. Gradients do
            not flow into them.

    Returns:
        A scalar, at least float32.

    Example:
        >>> import torch
        >>> x = torch.arange(48.0).reshape(2, 3, 2, 4)
        >>> round(nst_loss(x.sin(), x.cos()).item(), 3)
        0.184
    """
    students, teachers = as_stages("nst_loss", ("student", student, "B C H W"), ("teacher", teacher, "B C' H' W'"))
    terms = []
    for s, t in zip(students, teachers, strict=True):
        u_s, u_t = (normalize(x.flatten(2), dim=2) for x in match_size(s, t.detach()))  # (B, C, H*W)
        terms.append(mean_kernel(u_t, u_t) + mean_kernel(u_s, u_s) - 2 * mean_kernel(u_s, u_t))
    return sum(terms[1:], start=terms[0])


@dataclass(eq=False)
class NST(LossStrategy):
    """Neuron selectivity transfer (NST) at every stage (see :func:`nst_loss`); RepDistiller's ``feat[1:-1]``.

    The published figures come from RepDistiller's networks, one feature per stage. ICKD's resnet, wrn and ResNet50 list
    one per block and drop the extra ones where the counts differ, so their NST is a different loss (equal only for
    networks with one block per stage, such as resnet8x4).

    Args:
        weight: factor of the loss; 50 in RepDistiller's script, for all pairs.
    """

    weight: NonNegativeFloat = 50.0

    def maps_of(self, net: FeatureShapes) -> dict[str, tuple[int, ...]]:
        return net.stage_ends()

    def check(self, student: FeatureShapes, teacher: FeatureShapes) -> None:
        check_stage_count(self, student, teacher)

    def loss(self, student: Features, teacher: Features, batch: Batch, adapter: nn.Module | None) -> Tensor:
        return nst_loss(student.stages, teacher.stages)
