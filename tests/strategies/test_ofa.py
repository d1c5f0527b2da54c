from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from ickd_pl.strategies.ofa import OFA, ofa_loss
from tests.strategies.golden_methods import blank_batch
from tests.strategies.reference import check_half, full_features, gradients, s, t

LABEL = torch.tensor([0, 3, 3, 7])


def loss(student: Tensor, teacher: Tensor) -> Tensor:
    return ofa_loss(student, teacher, LABEL[: len(student)], power=1.5)


def test_a_power_of_one_is_the_cross_entropy_with_the_teacher() -> None:
    expected = cross_entropy(s(4, 10) / 2, (t(4, 10) / 2).softmax(1))
    torch.testing.assert_close(ofa_loss(s(4, 10), t(4, 10), LABEL, 1, 2), expected)


def test_a_larger_power_raises_the_label() -> None:
    student, teacher = full_features(1, (4, 2, 2)), full_features(2, (4, 2, 2))
    label = torch.tensor([0, 1, 2, 0])
    log_p, target = student.logits.log_softmax(1), teacher.logits.softmax(1)
    raised = target**2
    for image, own in enumerate(label.tolist()):
        raised[image, own] = (1 + target[image, own]) ** 2 - 1
    expected = -(raised * log_p).sum(1).mean().item()
    value = OFA(power=2).loss(student, teacher, blank_batch(4)._replace(label=label), None)
    assert value.item() == pytest.approx(expected, rel=1e-12)


def test_finite() -> None:
    """Also where a probability is rounded to 0."""
    gradients(loss, torch.zeros(4, 10), t(4, 10).float())
    gradients(loss, torch.tensor([[-1e4, 1e4, 0.0]]), torch.tensor([[1e4, -1e4, 0.0]]))
    check_half(loss, s(4, 10), t(4, 10))


@pytest.mark.parametrize(("power", "expected"), [(1, 5.252054746), (1.5, 4.761733193)])
def test_reference(power: float, expected: float) -> None:
    """What the authors' code gives."""
    assert ofa_loss(3 * s(4, 10), 4 * t(4, 10), LABEL, power).item() == pytest.approx(expected, rel=1e-8)
