"""Scale decoupled distillation (SDD)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import log_softmax

from ickd_pl.checks import NonNegativeFloat, NonNegativeInt, PositiveFloat
from ickd_pl.data.batch import Batch
from ickd_pl.models.features import Features, FeatureShapes
from ickd_pl.strategies.base import LossStrategy, full_precision
from ickd_pl.strategies.components.compatibility import average_to, check_classifier
from ickd_pl.strategies.components.shapes import check_shapes
from ickd_pl.strategies.components.warmup import warmed_up
from ickd_pl.strategies.dkd import dkd_per_image
from ickd_pl.strategies.kd import kd_per_image

Base = Literal["kd", "dkd", "nkd"]


def regions(final: Tensor, finest: int) -> Tensor:
    """Means of a map over the cells of ever finer grids: (B, C, H, W) to (R, B, C), first that over the whole map.

    The grids have 1, 2, 4, ... ``finest`` cells a side; the coarser are averages of the finest.
    """
    grid = average_to(final, (finest, finest))
    found: list[Tensor] = []
    while True:
        found.insert(0, grid.flatten(2).permute(2, 0, 1))
        if grid.shape[2] == 1:
            return torch.cat(found)
        grid = average_to(grid, (grid.shape[2] // 2, grid.shape[3] // 2))


def _nkd_unmasked(student: Tensor, teacher: Tensor, label: Tensor, gamma: float, temperature: float) -> Tensor:
    """NKD of each image as SDD's code has it: the label is among the other classes."""
    own = label[:, None]
    s_own, t_own = (log_softmax(x, dim=1).gather(1, own)[:, 0] for x in (student, teacher))
    s_all, t_all = (log_softmax(x / temperature, dim=1) for x in (student, teacher))
    return -(t_own.exp() * s_own + gamma * temperature**2 * (t_all.exp() * s_all).sum(dim=1))


@full_precision
def sdd_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    label: Tensor,
    base: Base = "kd",
    temperature: float = 4.0,
    beta: float = 8.0,
    complementary: float = 2.0,
) -> Tensor:
    """A loss on logits for every region of the last map, more where a region's teacher contradicts the whole's.

    ``mean over regions and images of w L(student, teacher)``: ``w`` is ``complementary`` where the teacher is right
    about the label in the region and wrong in region 0, or the other way round, else 1. ``L`` is KD, DKD (alpha 1) or
    NKD of one image.

    [0] Wei, Luo, Luo, Scale Decoupled Distillation, CVPR 2024
    [1] reference code: shicaiwei123/SDD-CVPR2024 (commit e412036). Its NKD does not leave the label out of the other
    classes; so does this

    Args:
        student_logits: of each region, shape (R, B, K); region 0 is the whole map.
        teacher_logits: shape (R, B, K); gradients do not flow into it.
        label: shape (B,), class numbers.
        base: the loss of a region.
        temperature: softening T.
        beta: weight of the other classes' term of DKD or NKD (gamma there).
        complementary: weight of a contradicting region.

    Returns:
        A scalar, at least float32.

    Example:
        >>> import torch
        >>> x = torch.arange(24.0).reshape(2, 4, 3)
        >>> round(sdd_loss(x.sin(), x.cos(), torch.tensor([0, 1, 2, 0])).item(), 3)
        0.453
    """
    check_shapes(
        "sdd_loss", ("student", student_logits, "R B K"), ("teacher", teacher_logits, "R B K"), ("label", label, "B")
    )
    teacher_logits = teacher_logits.detach()
    right = teacher_logits.argmax(dim=2) == label  # (R, B)
    weight = torch.where(right == right[0], 1.0, complementary).flatten()
    labels = label.expand(len(student_logits), -1).flatten()
    student, teacher = student_logits.flatten(0, 1), teacher_logits.flatten(0, 1)
    if base == "kd":
        each = kd_per_image(student, teacher, temperature)
    elif base == "dkd":
        each = dkd_per_image(student, teacher, labels, 1.0, beta, temperature)
    else:
        each = _nkd_unmasked(student, teacher, labels, beta, temperature)
    return (weight * each).mean()


@dataclass(eq=False)
class SDD(LossStrategy):
    """Scale decoupled distillation (SDD) (see :func:`sdd_loss`).

    Both networks' last layers, with their biases, are applied to averages of the last map over the cells of grids of 1,
    2 and, with ``finest`` 4, 4 cells a side. The student's last layer learns from all of them.

    Args:
        weight: factor of the loss. With ``kd`` the authors' is 0.9 beside a cross entropy of 0.1.
        base: ``kd``, ``dkd`` or ``nkd``.
        temperature: softening T; 4 in all of the authors' commands.
        beta: weight of the other classes' term of ``dkd`` and ``nkd``. The authors' by pair: 2 for resnet56/resnet20
            and resnet110/resnet32; 6 for wrn_40_2/wrn_16_2, wrn_40_2/wrn_40_1, vgg13/vgg8 and vgg13/MobileNetV2; 8 for
            the others.
        finest: 2 in the authors' commands for pairs of one family, 4 for the others.
        warmup_epochs: the weight in main epoch e is ``weight * min(e / warmup_epochs, 1)``; 0 is no warm-up. The
            authors warm ``dkd`` and ``nkd`` up for 20 epochs, ``kd`` not.
    """

    weight: NonNegativeFloat = 0.9
    base: Base = "kd"
    temperature: PositiveFloat = 4.0
    beta: NonNegativeFloat = 8.0
    finest: Literal[2, 4] = 2
    warmup_epochs: NonNegativeInt = 0

    def maps_of(self, net: FeatureShapes) -> dict[str, tuple[int, ...]]:
        return {"the map before the pooling": net.final}

    def check(self, student: FeatureShapes, teacher: FeatureShapes) -> None:
        check_classifier(self, student, teacher, student, teacher)

    def weight_at(self, epoch: int | None) -> float:
        return warmed_up(self.weight, epoch, self.warmup_epochs)

    def loss(self, student: Features, teacher: Features, batch: Batch, adapter: nn.Module | None) -> Tensor:
        if student.classifier is None or teacher.classifier is None:
            raise RuntimeError("SDD needs both networks' last layers")
        one, other = (net.classifier(regions(net.final, self.finest)) for net in (student, teacher) if net.classifier)
        value: Tensor = sdd_loss(one, other, batch.label, self.base, self.temperature, self.beta)
        return value
