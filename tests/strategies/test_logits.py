"""What methods on logits share: standardised logits, and the divergence of a probability and its complement."""

from __future__ import annotations

import pytest
import torch

from ickd_pl.strategies.components.logits import binary_kl, standardised
from ickd_pl.strategies.dkd import DKD, dkd_loss
from ickd_pl.strategies.kd import KD, kd_loss
from ickd_pl.strategies.rld import RLD, rld_loss
from tests.strategies.golden_methods import blank_batch
from tests.strategies.reference import full_features, s, t


def test_standardised_logits() -> None:
    found = standardised(7 * s(4, 10) + 3)
    torch.testing.assert_close(found.mean(1), torch.zeros(4, dtype=torch.float64), rtol=0, atol=1e-12)
    torch.testing.assert_close(found.std(1), torch.ones(4, dtype=torch.float64), rtol=0, atol=1e-7)
    assert standardised(s(2, 3).bfloat16()).dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equal_logits_have_no_gradient(dtype: torch.dtype) -> None:
    logits = torch.ones(2, 5, dtype=dtype, requires_grad=True)
    found = standardised(logits)
    (grad,) = torch.autograd.grad(found.square().sum() + found[0, 0], logits)
    assert not found.any() and grad.isfinite().all()


def test_divergence_of_a_probability() -> None:
    p, q = torch.tensor([0.2, 0.5, 0.9]), torch.tensor([0.3, 0.5, 0.4])
    expected = p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()
    torch.testing.assert_close(binary_kl(p.logit(), q.logit()), expected)
    assert binary_kl(torch.tensor([1e4]), torch.tensor([-1e4])).isfinite()


def test_methods_take_standardised_logits() -> None:
    student, teacher = full_features(1, (4, 2, 2)), full_features(2, (4, 2, 2))
    label = torch.tensor([0, 1, 2, 0])
    batch = blank_batch(4)._replace(label=label)
    one, other = standardised(student.logits), standardised(teacher.logits)
    for method, expected in (
        (KD(temperature=2, standardise=True), kd_loss(one, other, 2)),
        (DKD(beta=2, temperature=3, standardise=True), dkd_loss(one, other, label, 1, 2, 3)),
        (RLD(standardise=True), rld_loss(one, other, label)),
    ):
        assert method.loss(student, teacher, batch, None) == expected


def test_reference() -> None:
    """What the authors' code gives."""
    one, other, label = standardised(3 * s(4, 10)), standardised(4 * t(4, 10)), torch.tensor([0, 3, 3, 7])
    assert kd_loss(one, other, 2).item() == pytest.approx(0.9694761528, rel=1e-8)
    assert dkd_loss(one, other, label, 1, 8, 2).item() == pytest.approx(7.471808328, rel=1e-8)
