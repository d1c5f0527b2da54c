from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from ickd_pl.strategies.itrd import ITRD, correlation_loss, mutual_loss
from tests.strategies.golden_methods import blank_batch, built, make_features
from tests.strategies.reference import check_half, gradients, s, t


def test_correlations_by_numpy() -> None:
    one, other = s(5, 3), t(5, 3)
    found = [np.corrcoef(a, b)[0, 1] * 4 / 5 for a, b in zip(one.T.numpy(), other.T.numpy(), strict=True)]
    expected = math.log2(sum(abs(c - 1) ** 3 for c in found))
    assert correlation_loss(one, other, alpha=1.5).item() == pytest.approx(expected, rel=1e-10)


def test_similarities_by_numpy() -> None:
    def gram(x: np.ndarray) -> np.ndarray:  # type: ignore[type-arg]
        x = x / np.linalg.norm(x, axis=1, keepdims=True)
        return x @ x.T / len(x)

    own, taught = gram(s(5, 3).numpy()), gram(t(5, 4).numpy())
    both = own * taught / np.trace(own * taught)
    expected = (own**2).sum() - (both**2).sum()
    assert mutual_loss(s(5, 3), t(5, 4)).item() == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_constant_dimensions_vectors_of_zeros_and_one_image(dtype: torch.dtype) -> None:
    """The original gives NaN for a dimension that is constant in the batch."""
    for loss in (correlation_loss, mutual_loss):
        for size in (4, 1):
            one, other = s(size, 3).to(dtype), t(size, 3).to(dtype)
            still = other.clone()
            still[:, 1] = 7
            for student, teacher in ((one, still), (still, other), (torch.zeros_like(one), torch.zeros_like(one))):
                gradients(loss, student, teacher)
        check_half(loss, s(4, 3), t(4, 3))
    one = s(4, 3).to(dtype)
    expected = correlation_loss(one[:, [0, 2]], t(4, 3)[:, [0, 2]].to(dtype)).exp2() + 1
    flat = t(4, 3).to(dtype)
    flat[:, 1] = 0
    torch.testing.assert_close(correlation_loss(one, flat).exp2(), expected)


def test_the_embedding_is_between_different_widths() -> None:
    method = ITRD(correlation_weight=2, mutual_weight=3, exponent=1.5)
    for width in (3, 4):
        student, teacher = make_features(pooled=s(5, 3)), make_features(pooled=t(5, width))
        adapter = built(method, student, teacher)
        assert adapter is not None
        embedded = adapter.double()(student.pooled)
        expected = 2 * correlation_loss(embedded, teacher.pooled, 1.5)
        expected = expected + 3 * mutual_loss(student.pooled if width == 3 else embedded, teacher.pooled)
        torch.testing.assert_close(method.loss(student, teacher, blank_batch(5), adapter), expected)


def test_reference() -> None:
    """What the authors' code gives, with an embedding that changes nothing."""
    assert correlation_loss(s(4, 5), t(4, 5), alpha=1.5).item() == pytest.approx(2.772204494, rel=1e-8)
    assert mutual_loss(s(4, 5), t(4, 5)).item() == pytest.approx(0.304957264, rel=1e-8)
