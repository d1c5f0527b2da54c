from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from ickd_pl.strategies.nkd import NKD, nkd_loss
from tests.strategies.golden_methods import blank_batch
from tests.strategies.reference import check_half, full_features, gradients, s, t

LABEL = torch.tensor([0, 3, 3, 7])


def loss(student: Tensor, teacher: Tensor) -> Tensor:
    return nkd_loss(student, teacher, LABEL[: len(student)])


def test_equals_numpy() -> None:
    student, teacher = full_features(1, (4, 2, 2)), full_features(2, (4, 2, 2))
    label = torch.tensor([0, 1, 2, 0])
    expected = 0.0
    for own, z_s, z_t in zip(label.tolist(), student.logits.numpy(), teacher.logits.numpy(), strict=True):
        p_s, p_t = (np.exp(z) / np.exp(z).sum() for z in (z_s, z_t))
        q_s, q_t = (np.exp(np.delete(z, own) / 2) for z in (z_s, z_t))
        q_s, q_t = q_s / q_s.sum(), q_t / q_t.sum()
        expected -= (p_t[own] * np.log(p_s[own]) + 0.7 * 4 * (q_t * np.log(q_s)).sum()) / 4
    value = NKD(gamma=0.7, temperature=2).loss(student, teacher, blank_batch(4)._replace(label=label), None)
    assert value.item() == pytest.approx(expected, rel=1e-12)


def test_least_for_equal_logits_and_finite() -> None:
    """The other classes' term is least where both agree; nothing breaks for far logits, zeros or one image."""
    student = t(4, 10).requires_grad_()
    rest = nkd_loss(student, t(4, 10), LABEL) - nkd_loss(student, t(4, 10), LABEL, gamma=0)
    (grad,) = torch.autograd.grad(rest, student)
    assert grad.abs().max() < 1e-12
    gradients(loss, torch.zeros(4, 10), t(4, 10).float())
    gradients(loss, torch.tensor([[-1e4, 1e4, 0.0]]), torch.tensor([[1e4, -1e4, 0.0]]))
    check_half(loss, s(4, 10), t(4, 10))


@pytest.mark.parametrize(("temperature", "gamma", "expected"), [(1, 1.5, 8.57036874), (3, 3.5, 81.6734369)])
def test_reference(temperature: float, gamma: float, expected: float) -> None:
    """What the authors' code gives."""
    assert nkd_loss(3 * s(4, 10), 4 * t(4, 10), LABEL, gamma, temperature).item() == pytest.approx(expected, rel=1e-8)
