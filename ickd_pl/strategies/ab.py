"""Activation boundaries (AB)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import relu

from ickd_pl.checks import NonNegativeFloat, NonNegativeInt, PositiveFloat
from ickd_pl.data.batch import Batch, DataInfo
from ickd_pl.models.features import Features, FeatureShapes
from ickd_pl.strategies.base import LossStrategy, at_least_float32, full_precision
from ickd_pl.strategies.components.compatibility import (
    check_stage_count,
    expect,
    feature_modules,
    incompatible,
    shape_text,
)
from ickd_pl.strategies.components.regressors import ConvRegressor, can_regress
from ickd_pl.strategies.components.shapes import Maps, as_stages

# RepDistiller's constant factor.
SCALE = 3 / 1000


@full_precision
def ab_loss(student: Maps, teacher: Maps, margin: float = 1.0) -> Tensor:
    """Squared hinge: the student's value must lie on the teacher's side of zero, at least ``margin`` away from it.

    Per stage the sum of ``relu(s + margin)^2`` where the teacher is at most 0 and ``relu(margin - s)^2`` where it is
    positive. The last stage counts once, every earlier one half of the next. All over B, times 3/1000.

    [0] Heo, Lee, Yun, Choi, Knowledge Transfer via Distillation of Activation Boundaries Formed by Hidden Neurons,
    AAAI 2019, https://arxiv.org/abs/1811.03233
    [1] reference code: HobbitLong/RepDistiller, distiller_zoo/AB.py

    Args:
        student: connected maps before their ReLU, each (B, C, H, W), shallow to deep; one map alone is one stage.
        teacher: maps before their ReLU, of the same shapes. Gradients do not flow into them.
        margin: distance from zero that is enough.

    Returns:
        A scalar, at least float32.

    Example:
        >>> import torch
        >>> x = torch.arange(48.0).reshape(2, 3, 2, 4)
        >>> round(ab_loss(x.sin(), x.cos()).item(), 3)
        0.113
    """
    students, teachers = as_stages("ab_loss", ("student", student, "B ..."), ("teacher", teacher, "B ..."))
    loss = torch.zeros((), device=students[0].device)
    for s, t in zip(students, teachers, strict=True):
        hinge = torch.where(t.detach() > 0, relu(margin - s), relu(s + margin))  # (B, C, H, W)
        loss = loss / 2 + hinge.square().sum() / len(s)
    return SCALE * loss


@dataclass(eq=False)
class AB(LossStrategy):
    """Activation boundaries (AB) of the stage ends before their ReLU (``Features.preact``), in a first stage.

    First stage: a connector per stage (nothing where the shapes agree, else convolution and batch norm as FitNet's
    without the ReLU) and the student's feature layers learn :func:`ab_loss`, at a constant learning rate. Main stage:
    cross entropy alone, connectors frozen; the loss here is 0 and ``weight`` has no effect (RepDistiller's script
    sets 1).

    ICKD's variant of the networks gives activations after the ReLU here, which have no negative side; this follows
    RepDistiller.

    Args:
        weight: has no effect.
        margin: distance from zero that is enough.
        pretrain_epochs: length of the first stage.
        pretrain_lr: its learning rate; None takes the recipe's.
    """

    needs_preact: ClassVar[bool] = True

    weight: NonNegativeFloat = 1.0
    margin: NonNegativeFloat = 1.0
    pretrain_epochs: NonNegativeInt = 30
    pretrain_lr: PositiveFloat | None = None

    def maps_of(self, net: FeatureShapes) -> dict[str, tuple[int, ...]]:
        return {f"stage {number}": shape for number, shape in enumerate(_ends(net), start=1)}

    def check(self, student: FeatureShapes, teacher: FeatureShapes) -> None:
        check_stage_count(self, student, teacher)
        for number, (s, t) in enumerate(zip(_ends(student), _ends(teacher), strict=True), start=1):
            if not can_regress(s, t):
                why = (
                    f"no convolution brings stage {number} of the student, {shape_text(s)}, to that of the teacher, "
                    f"{shape_text(t)}: the student's map must be half as large or not smaller"
                )
                raise incompatible(self, student, teacher, why)

    def build(self, student: FeatureShapes, teacher: FeatureShapes, data: DataInfo) -> nn.Module:
        pairs = zip(_ends(student), _ends(teacher), strict=True)
        return nn.ModuleList(nn.Identity() if s == t else ConvRegressor(s, t, activation=False) for s, t in pairs)

    def loss(self, student: Features, teacher: Features, batch: Batch, adapter: nn.Module | None) -> Tensor:
        return at_least_float32(student.logits).new_zeros(())

    def pretrain_loss(self, student: Features, teacher: Features, batch: Batch, adapter: nn.Module | None) -> Tensor:
        if student.preact is None or teacher.preact is None:
            raise RuntimeError("AB needs both networks' features with preact=True")
        connectors = expect(self, adapter, nn.ModuleList)
        connected = [connect(s) for connect, s in zip(connectors, student.preact, strict=True)]
        return ab_loss(connected, teacher.preact, self.margin)

    def pretrain_modules(self, student: nn.Module, adapter: nn.Module | None) -> list[nn.Module]:
        return [*feature_modules(student), expect(self, adapter, nn.ModuleList)]

    def frozen_in_main(self, adapter: nn.Module | None) -> list[nn.Module]:
        return [expect(self, adapter, nn.ModuleList)]


def _ends(shapes: FeatureShapes) -> tuple[tuple[int, ...], ...]:
    return shapes.stages if shapes.preact is None else shapes.preact
