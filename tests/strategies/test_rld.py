from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from ickd_pl.strategies.rld import RLD, rld_loss
from tests.strategies.golden_methods import blank_batch, make_features
from tests.strategies.reference import check_half, gradients, s, t

LABEL = torch.tensor([0, 3, 3, 7])


def loss(student: Tensor, teacher: Tensor) -> Tensor:
    return rld_loss(student, teacher, LABEL[: len(student)])


def test_equals_numpy() -> None:
    expected = 0.0
    for own, z_s, z_t in zip(LABEL.tolist(), 3 * s(4, 10).numpy(), 4 * t(4, 10).numpy(), strict=True):
        p, q = np.exp(z_t / 2), np.exp(z_s / 2)
        p, q = (p / p.sum()).max(), (q / q.sum())[own]
        confidence = p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))
        kept = z_t < z_t[own]
        r_t, r_s = (np.exp(z[kept] / 3) / np.exp(z[kept] / 3).sum() for z in (z_t, z_s))
        expected += (0.5 * 4 * confidence + 2 * 9 * (r_t * np.log(r_t / r_s)).sum()) / 4
    method = RLD(alpha=0.5, beta=2, temperature=3, confidence_temperature=2)
    student, teacher = make_features(logits=3 * s(4, 10)), make_features(logits=4 * t(4, 10))
    value = method.loss(student, teacher, blank_batch(4)._replace(label=LABEL), None)
    assert value.item() == pytest.approx(expected, rel=1e-10)


def test_no_class_below_the_label() -> None:
    teacher = t(4, 10)
    teacher.scatter_(1, LABEL[:, None], -100.0)
    assert rld_loss(s(4, 10), teacher, LABEL, alpha=0) == 0
    assert gradients(lambda a, b: rld_loss(a, b, LABEL, alpha=0), s(4, 10), teacher).abs().max() == 0


def test_finite() -> None:
    for label in (0, 1, 2):
        for sign in (1, -1):
            one = torch.tensor([[1e4, -1e4, 0.0]])
            gradients(lambda a, b: rld_loss(a, b, torch.tensor([label])), one, sign * one)  # noqa: B023
    gradients(loss, torch.zeros(4, 10), torch.zeros(4, 10))
    check_half(loss, s(4, 10), t(4, 10))


def test_warmup() -> None:
    rld = RLD(weight=2, warmup_epochs=20)
    assert [rld.weight_at(epoch) for epoch in (1, 2, 20, 21, None)] == [0.1, 0.2, 2, 2, 2]
    assert RLD(warmup_epochs=0).weight_at(1) == 1


@pytest.mark.parametrize(("confidence_temperature", "expected"), [(1, 27.47588531), (4, 27.47398783)])
def test_reference(confidence_temperature: float, expected: float) -> None:
    """What the authors' code gives."""
    value = rld_loss(3 * s(4, 10), 4 * t(4, 10), LABEL, 1, 8, 4, confidence_temperature)
    assert value.item() == pytest.approx(expected, rel=1e-8)
