from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ickd_pl.strategies.ttm import ttm_loss
from ickd_pl.strategies.wttm import WTTM, wttm_loss
from tests.strategies.golden_methods import blank_batch
from tests.strategies.reference import check_half, full_features, gradients, s, t


def loss(student: Tensor, teacher: Tensor) -> Tensor:
    return wttm_loss(student, teacher)


def test_images_weighted_by_the_sum_of_powers() -> None:
    student, teacher = full_features(1, (4, 2, 2)), full_features(2, (4, 2, 2))
    sums = (teacher.logits.softmax(1) ** 0.4).sum(1)
    each = torch.stack([ttm_loss(a[None], b[None], 0.4) for a, b in zip(student.logits, teacher.logits, strict=True)])
    value = WTTM(exponent=0.4).loss(student, teacher, blank_batch(4), None)
    assert value.item() == pytest.approx((sums * each).mean().item(), rel=1e-10)


def test_finite() -> None:
    gradients(loss, torch.zeros(4, 10), t(4, 10).float())
    gradients(loss, torch.tensor([[-1e4, 1e4, 0.0]]), torch.tensor([[1e4, -1e4, 0.0]]))
    check_half(loss, s(4, 10), t(4, 10))
