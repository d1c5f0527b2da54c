from __future__ import annotations

import pytest
import torch

from ickd_pl.strategies.ttm import TTM, ttm_loss
from tests.strategies.golden_methods import blank_batch
from tests.strategies.reference import check_half, check_properties, full_features, gradients, s, t


def test_a_teacher_of_its_own_temperature() -> None:
    student, teacher = full_features(1, (4, 2, 2)), full_features(2, (4, 2, 2))
    powers = teacher.logits.softmax(1) ** 0.3
    r = powers / powers.sum(1, keepdim=True)
    torch.testing.assert_close(r, (0.3 * teacher.logits).softmax(1))
    expected = (r * (r / student.logits.softmax(1)).log()).sum(1).mean().item()
    value = TTM(exponent=0.3).loss(student, teacher, blank_batch(4), None)
    assert value.item() == pytest.approx(expected, rel=1e-10)


def test_properties() -> None:
    check_properties(lambda a, b: ttm_loss(a, b, exponent=1), s(4, 10), t(4, 10))
    check_half(ttm_loss, s(4, 10), t(4, 10))
    gradients(ttm_loss, torch.tensor([[-1e4, 1e4, 0.0]]), torch.tensor([[1e4, -1e4, 0.0]]))


@pytest.mark.parametrize(("weighted", "expected"), [(False, 1.701583872), (True, 10.83050862)])
def test_reference(weighted: bool, expected: float) -> None:
    """What the authors' code gives."""
    value = ttm_loss(3 * s(4, 10), 4 * t(4, 10), 0.1, weighted)
    assert value.item() == pytest.approx(expected, rel=1e-8)
