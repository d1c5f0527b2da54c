from __future__ import annotations

import numpy as np
import pytest
import torch

from ickd_pl.strategies.dist import DIST, dist_loss
from tests.strategies.golden_methods import blank_batch
from tests.strategies.reference import check_half, full_features, gradients, s, t


def test_equals_numpy() -> None:
    student, teacher = full_features(1, (4, 2, 2)), full_features(2, (4, 2, 2))
    p, q = ((x.logits / 2).softmax(1).numpy() for x in (student, teacher))
    rows = np.mean([np.corrcoef(a, b)[0, 1] for a, b in zip(p, q, strict=True)])
    columns = np.mean([np.corrcoef(a, b)[0, 1] for a, b in zip(p.T, q.T, strict=True)])
    expected = 4 * (0.5 * (1 - rows) + 3 * (1 - columns))
    value = DIST(beta=0.5, gamma=3, temperature=2).loss(student, teacher, blank_batch(4), None)
    assert value.item() == pytest.approx(expected, rel=1e-3)  # the 1e-8 that is added counts for small deviations


def test_any_scale_will_do() -> None:
    """Zero, but for what is added to the product of deviations, for equal logits."""
    assert dist_loss(9 * t(4, 10), 9 * t(4, 10), temperature=1).item() == pytest.approx(0, abs=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_constants(dtype: torch.dtype) -> None:
    """Probabilities that are all equal, or those of one image, have no deviation."""
    zeros = torch.zeros(4, 10, dtype=dtype)
    for one, other in ((zeros, t(4, 10).to(dtype)), (t(4, 10).to(dtype), zeros), (zeros, zeros)):
        gradients(dist_loss, one, other)
    one = s(1, 10).to(dtype)
    assert dist_loss(one, one, beta=0, gamma=2) == 32
    gradients(dist_loss, one, t(1, 10).to(dtype))
    check_half(dist_loss, s(4, 10), t(4, 10))


@pytest.mark.parametrize(
    ("beta", "gamma", "temperature", "expected"),
    [(1, 1, 1, 2.492657086), (1, 1, 4, 37.0393552), (1, 0, 4, 19.14609638), (0, 1, 4, 17.89325881)],
)
def test_reference(beta: float, gamma: float, temperature: float, expected: float) -> None:
    """What the authors' code gives."""
    value = dist_loss(3 * s(4, 10), 4 * t(4, 10), beta, gamma, temperature)
    assert value.item() == pytest.approx(expected, rel=1e-8)
