from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from ickd_pl.strategies.wsld import WSLD, wsld_loss
from tests.strategies.golden_methods import blank_batch
from tests.strategies.reference import check_half, full_features, gradients, s, t

LABEL = torch.tensor([0, 3, 3, 7])


def loss(student: Tensor, teacher: Tensor) -> Tensor:
    return wsld_loss(student, teacher, LABEL[: len(student)])


def test_a_weighted_sum_over_images() -> None:
    student, teacher = full_features(1, (4, 2, 2)), full_features(2, (4, 2, 2))
    label = torch.tensor([0, 1, 2, 0])
    expected = 0.0
    for z_s, z_t, own in zip(student.logits, teacher.logits, label, strict=True):
        weight = 1 - (-cross_entropy(z_s, own) / cross_entropy(z_t, own)).exp()
        expected += float(9 * weight * cross_entropy(z_s / 3, (z_t / 3).softmax(0))) / 4
    value = WSLD(temperature=3).loss(student, teacher, blank_batch(4)._replace(label=label), None)
    assert value.item() == pytest.approx(expected, rel=1e-6)


def test_what_the_student_knows_is_not_taught() -> None:
    """And the weight has no gradient: equal logits have none."""
    sure = 1e4 * torch.eye(10)[LABEL]
    assert loss(sure, t(4, 10).float()) == 0
    assert gradients(loss, t(4, 10), t(4, 10)).abs().max() < 1e-12


def test_finite() -> None:
    gradients(loss, torch.zeros(4, 10), t(4, 10).float())
    gradients(loss, torch.tensor([[-1e4, 1e4, 0.0]]), torch.tensor([[1e4, -1e4, 0.0]]))
    check_half(loss, s(4, 10), t(4, 10))


@pytest.mark.parametrize(("temperature", "expected"), [(4, 25.28395091), (2, 8.024118293)])
def test_reference(temperature: float, expected: float) -> None:
    value = wsld_loss(3 * s(4, 10), 4 * t(4, 10), LABEL, temperature)
    assert value.item() == pytest.approx(expected, rel=1e-8)
