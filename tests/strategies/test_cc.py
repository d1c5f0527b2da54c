from __future__ import annotations

import numpy as np
import pytest
import torch

from ickd_pl.data.batch import DataInfo
from ickd_pl.strategies.cc import CC, cc_loss
from tests.strategies.golden_methods import blank_batch, make_features
from tests.strategies.reference import VALUES, arrays, check_half, filled_adapter, full_features, s, shapes, t


def test_reference() -> None:
    assert cc_loss(s(4, 5), t(4, 5)).item() == pytest.approx(VALUES["cc"], rel=1e-10)


def test_by_hand() -> None:
    student = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    assert cc_loss(student, torch.zeros(3, 2)).item() == pytest.approx(((3 + 8) + (15 + 24)) / 2)


def test_zero_for_equal_embeddings_and_for_one_image() -> None:
    assert cc_loss(s(4, 5), s(4, 5)).item() == 0
    one = s(1, 5).requires_grad_()
    cc_loss(one, t(1, 5)).backward()
    assert one.grad is not None and one.grad.abs().sum() == 0
    check_half(cc_loss, s(4, 5), t(4, 5))


def test_both_embeddings_learn_the_teachers_features_do_not() -> None:
    strategy = CC(dim=4)
    adapter = strategy.build(shapes(width=5), shapes(width=7), DataInfo(num_classes=5))
    student, teacher = torch.randn(4, 5, requires_grad=True), torch.randn(4, 7, requires_grad=True)
    strategy.loss(make_features(pooled=student), make_features(pooled=teacher), blank_batch(4), adapter).backward()
    assert student.grad is not None and teacher.grad is None
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in adapter.parameters())


def test_loss_equals_numpy() -> None:
    """On the pooled features, of unequal widths, through linear layers with bias and nothing else."""
    student, teacher = full_features(1, (4, 2, 2), width=6), full_features(2, (3, 2, 2), width=3)
    adapter = filled_adapter(CC(dim=5), student, teacher)
    values = arrays(adapter)
    e_s, e_t = (
        x.pooled.numpy() @ values[f"{side}.linear.weight"].T + values[f"{side}.linear.bias"]
        for side, x in (("student", student), ("teacher", teacher))
    )
    assert e_s.shape == e_t.shape == (4, 5)
    expected = sum(np.abs(e_s[b] - e_t[b]) @ np.abs(e_s[b + 1] - e_t[b + 1]) for b in range(3)) / 3
    value = CC(dim=5).loss(student, teacher, blank_batch(4), adapter)
    assert value.item() == pytest.approx(expected, rel=1e-10)
