from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.nn.functional import log_softmax

from ickd_pl.strategies.kd import KD, kd_loss
from tests.strategies.golden_methods import blank_batch
from tests.strategies.reference import VALUES, check_properties, full_features, s, t


@pytest.mark.parametrize("temperature", [1, 4])
def test_reference(temperature: int) -> None:
    value = kd_loss(3 * s(4, 10), 4 * t(4, 10), temperature).item()
    assert value == pytest.approx(VALUES[f"kd T={temperature}"], rel=1e-12)


def test_by_hand() -> None:
    """Teacher (3/4, 1/4), student (1/2, 1/2)."""
    teacher = torch.tensor([[math.log(3), 0.0]], dtype=torch.float64)
    expected = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    assert kd_loss(torch.zeros_like(teacher), teacher, temperature=1).item() == pytest.approx(expected, rel=1e-12)


def test_properties() -> None:
    check_properties(kd_loss, s(4, 10), t(4, 10))


def test_gradient_is_the_difference_of_probabilities() -> None:
    logits = s(4, 10).requires_grad_()
    (grad,) = torch.autograd.grad(kd_loss(logits, t(4, 10), 4.0), logits)
    expected = 4 / 4 * (log_softmax(logits / 4, 1).exp() - log_softmax(t(4, 10) / 4, 1).exp())  # T / B * (p - q)
    torch.testing.assert_close(grad, expected.detach())


def test_far_logits_stay_finite() -> None:
    assert kd_loss(torch.tensor([[1e4, -1e4]]), torch.tensor([[-1e4, 1e4]])).isfinite()


@pytest.mark.parametrize("temperature", [None, 3])
def test_loss_equals_numpy(temperature: float | None) -> None:
    student, teacher = full_features(1, (4, 2, 2)), full_features(2, (4, 2, 2))
    strategy, used = (KD(), 4) if temperature is None else (KD(temperature=temperature), temperature)
    p, q = (np.exp(x.logits.numpy() / used) for x in (teacher, student))
    p, q = p / p.sum(1, keepdims=True), q / q.sum(1, keepdims=True)
    expected = used**2 * (p * np.log(p / q)).sum() / 4
    assert strategy.loss(student, teacher, blank_batch(4), None).item() == pytest.approx(expected, rel=1e-10)
