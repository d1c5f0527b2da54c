from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from ickd_pl.strategies import DKD
from ickd_pl.strategies.dkd import dkd_loss
from ickd_pl.strategies.kd import kd_loss
from tests.strategies.golden_methods import blank_batch, make_features
from tests.strategies.reference import check_properties, gradients, s, t

LABEL = torch.tensor([0, 3, 3, 7])


def loss(student: Tensor, teacher: Tensor) -> Tensor:
    return dkd_loss(student, teacher, LABEL[: len(student)])


@pytest.mark.parametrize(
    ("alpha", "beta", "expected"),  # what mdistiller's file gives
    [(1, 8, 53.37819504084939), (1, 0, 1.3456574011450453), (0, 1, 6.504067204963043)],
)
def test_reference(alpha: float, beta: float, expected: float) -> None:
    student, teacher = 3 * s(4, 10), 4 * t(4, 10)
    assert dkd_loss(student, teacher, LABEL, alpha, beta).item() == pytest.approx(expected, rel=1e-10)
    assert dkd_loss(student.float(), teacher.float(), LABEL, alpha, beta).item() == pytest.approx(expected, rel=1e-6)


def test_by_hand() -> None:
    """Label 0: teacher (1/2, 3/8, 1/8), student (1/3, 1/3, 1/3)."""
    teacher = torch.tensor([[4.0, 3.0, 1.0]], dtype=torch.float64).log()
    student, label = torch.zeros_like(teacher), torch.tensor([0])
    target = 0.5 * math.log(0.5 * 3) + 0.5 * math.log(0.5 * 3 / 2)
    rest = 0.75 * math.log(0.75 * 2) + 0.25 * math.log(0.25 * 2)
    assert dkd_loss(student, teacher, label, 1, 0, 1).item() == pytest.approx(target, rel=1e-12)
    assert dkd_loss(student, teacher, label, 0, 1, 1).item() == pytest.approx(rest, rel=1e-12)


def test_properties() -> None:
    check_properties(loss, s(4, 10), t(4, 10))


def test_decouples_soft_targets() -> None:
    """With the teacher's probability of the other classes as beta, it is KD."""
    student, teacher = 3 * s(1, 10), 4 * t(1, 10)
    beta = 1 - (teacher / 4).softmax(1)[0, 0].item()
    assert dkd_loss(student, teacher, LABEL[:1], 1, beta).item() == pytest.approx(kd_loss(student, teacher).item())


def test_two_classes_leave_the_first_term() -> None:
    student, teacher, label = s(4, 2), t(4, 2), torch.tensor([0, 1, 1, 0])
    torch.testing.assert_close(dkd_loss(student, teacher, label), kd_loss(student, teacher))
    assert dkd_loss(student, teacher, label, alpha=0).item() == 0


def test_close_logits_keep_their_digits() -> None:
    teacher = t(4, 100).float()
    student = teacher + 0.1 * s(4, 100).float()
    expected = dkd_loss(student.double(), teacher.double(), LABEL, beta=0).item()
    assert dkd_loss(student, teacher, LABEL, beta=0).item() == pytest.approx(expected, rel=3e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_far_logits_stay_finite(dtype: torch.dtype) -> None:
    for label in (0, 1, 2):
        for sign in (1, -1):
            one = torch.tensor([[1e4, -1e4, 0.0]], dtype=dtype)
            gradients(lambda a, b: dkd_loss(a, b, torch.tensor([label])), one, sign * one)  # noqa: B023


def test_warmup() -> None:
    dkd = DKD(weight=2, warmup_epochs=20)
    assert [dkd.weight_at(epoch) for epoch in (1, 2, 20, 21, None)] == [0.1, 0.2, 2, 2, 2]
    assert DKD(warmup_epochs=0).weight_at(1) == 1


def test_reads_logits_and_label() -> None:
    student, teacher = make_features(logits=s(4, 10)), make_features(logits=t(4, 10))
    batch = blank_batch(4)._replace(label=LABEL)
    value = DKD(alpha=2, beta=3, temperature=5).loss(student, teacher, batch, None)
    assert value == dkd_loss(s(4, 10), t(4, 10), LABEL, 2, 3, 5)
