from __future__ import annotations

import numpy as np
import pytest
import torch

from ickd_pl.errors import IncompatiblePair
from ickd_pl.strategies.at import AT, at_loss
from tests.strategies.golden_methods import blank_batch
from tests.strategies.reference import VALUES, check_properties, full_features, one_size, s, shapes, t, unit


@pytest.mark.parametrize(("key", "size"), [("at", 4), ("at pooled", 8)])
def test_reference(key: str, size: int) -> None:
    assert at_loss([s(4, 6, 4, 4)], [t(4, 6, size, size)]).item() == pytest.approx(VALUES[key], rel=1e-10)


def test_by_hand() -> None:
    """One channel of two positions: attention (1, 0) against (0, 1)."""
    student = torch.tensor([3.0, 0.0]).reshape(1, 1, 1, 2)
    assert at_loss([student], [student.flip(3)]).item() == pytest.approx(1.0)


def test_properties() -> None:
    check_properties(lambda a, b: at_loss([a, a], [b, b]), s(4, 6, 4, 4), t(4, 6, 4, 4))


@pytest.mark.parametrize("power", [1.0, 3.0])
def test_other_powers_take_absolute_values(power: float) -> None:
    a, b = s(2, 3, 4, 4), t(2, 3, 4, 4)
    assert at_loss([a], [b], power).item() == pytest.approx(at_loss([-a], [b], power).item())


def test_unequal_stage_counts_raise() -> None:
    with pytest.raises(IncompatiblePair, match=r"resnet.*vgg.*2 stages.*against 1.*stage 2 of resnet has no partner"):
        AT().check(shapes("resnet"), shapes("vgg", stages=((4, 8, 8),)))
    with pytest.raises(ValueError, match="as many of each of student, teacher, got 2 and 1"):
        at_loss([s(1, 2, 4, 4)] * 2, [t(1, 2, 4, 4)])


@pytest.mark.parametrize("power", [2, 3])
def test_loss_equals_numpy(power: float) -> None:
    """Three stages; the larger map is once the student's, once the teacher's."""
    student = full_features(1, (4, 9, 9), (5, 4, 4), (6, 3, 3))
    teacher = full_features(2, (3, 9, 9), (2, 7, 7), (4, 2, 2))
    expected = 0.0
    for a, b in zip(student.stages, teacher.stages, strict=True):
        maps = [unit((np.abs(x) ** power).mean(1).reshape(4, -1), 1) for x in one_size(a, b)]
        expected += ((maps[0] - maps[1]) ** 2).mean()
    value = AT(power=power).loss(student, teacher, blank_batch(4), None)
    assert value.item() == pytest.approx(expected, rel=1e-10)
