"""Flow of solution procedure (FSP)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn.functional import mse_loss

from ickd_pl.checks import NonNegativeFloat, NonNegativeInt, PositiveFloat
from ickd_pl.data.batch import Batch
from ickd_pl.models.features import Features, FeatureShapes
from ickd_pl.strategies.base import LossStrategy, at_least_float32, full_precision
from ickd_pl.strategies.components.compatibility import check_channels, check_stage_count, feature_modules, match_size
from ickd_pl.strategies.components.shapes import Maps, as_stages


@full_precision
def flow_matrix(a: Tensor, b: Tensor) -> Tensor:
    """Inner products of the channels of two maps of one network, over the number of positions.

    Args:
        a: shape (B, C, H, W).
        b: shape (B, C', H', W'); the larger of the two maps is averaged to the smaller one's size.

    Returns:
        Shape (B, C, C').
    """
    a, b = (x.flatten(2) for x in match_size(a, b))  # (B, C, H*W)
    return a @ b.transpose(1, 2) / a.shape[2]


@full_precision
def fsp_loss(student: Maps, teacher: Maps) -> Tensor:
    """Mean squared error of the flow matrices, summed over pairs of consecutive maps.

    [0] Yim et al., A Gift from Knowledge Distillation, CVPR 2017
    [1] reference code: HobbitLong/RepDistiller, distiller_zoo/FSP.py

    Args:
        student: two or more maps, each (B, C, H, W), shallow to deep.
        teacher: as many maps with the student's channel counts. Gradients do not flow into them.

    Returns:
        A scalar, at least float32.

    Example:
        >>> import torch
        >>> x = torch.arange(48.0).reshape(2, 3, 2, 4)
        >>> round(fsp_loss([x.sin(), x.cos()], [x.cos(), x.cos()]).item(), 3)
        0.266
    """
    s, t = as_stages("fsp_loss", ("student", student, "B C H W"), ("teacher", teacher, "B C H' W'"), least=2)
    t = [x.detach() for x in t]
    steps = zip(s[:-1], s[1:], t[:-1], t[1:], strict=True)
    terms = [mse_loss(flow_matrix(s0, s1), flow_matrix(t0, t1)) for s0, s1, t0, t1 in steps]  # (B, C, C')
    return sum(terms[1:], start=terms[0])


@dataclass(eq=False)
class FSP(LossStrategy):
    """Flow of solution procedure (FSP) from stem to last stage (RepDistiller's ``feat[:-1]``), in a first stage.

    First stage: the student's feature layers alone learn :func:`fsp_loss`, at a constant learning rate. Main stage:
    cross entropy alone, the loss here is 0 and ``weight`` has no effect (RepDistiller's script sets 50).

    The channel counts of the two networks must agree. RepDistiller's 0.00 for wrn_40_2/wrn_40_1 is such a pair, not a
    result.

    ICKD's resnet, wrn and ResNet50 list one feature per block, so their flow matrices are more, and others (equal
    only for networks with one block per stage, such as resnet8x4). This follows RepDistiller.

    Args:
        weight: has no effect.
        pretrain_epochs: length of the first stage.
        pretrain_lr: its learning rate; None takes the recipe's.
    """

    weight: NonNegativeFloat = 50.0
    pretrain_epochs: NonNegativeInt = 30
    pretrain_lr: PositiveFloat | None = None

    def maps_of(self, net: FeatureShapes) -> dict[str, tuple[int, ...]]:
        return net.stage_ends(stem=True)

    def check(self, student: FeatureShapes, teacher: FeatureShapes) -> None:
        check_stage_count(self, student, teacher)
        pairs = zip((student.stem, *student.stages), (teacher.stem, *teacher.stages), strict=True)
        named = [(f"stage {n}" if n else "the stem", s, t) for n, (s, t) in enumerate(pairs)]
        check_channels(self, student, teacher, named)

    def loss(self, student: Features, teacher: Features, batch: Batch, adapter: nn.Module | None) -> Tensor:
        return at_least_float32(student.logits).new_zeros(())

    def pretrain_loss(self, student: Features, teacher: Features, batch: Batch, adapter: nn.Module | None) -> Tensor:
        return fsp_loss((student.stem, *student.stages), (teacher.stem, *teacher.stages))

    def pretrain_modules(self, student: nn.Module, adapter: nn.Module | None) -> list[nn.Module]:
        return feature_modules(student)
