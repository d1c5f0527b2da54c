from __future__ import annotations

import pytest
import torch

from ickd_pl.strategies.rkd import rkd_loss
from tests.strategies.reference import VALUES, check_properties, s, t


@pytest.mark.parametrize(("key", "weights"), [("rkd", (25, 50)), ("rkd distance", (1, 0)), ("rkd angle", (0, 1))])
def test_reference(key: str, weights: tuple[float, float]) -> None:
    assert rkd_loss(s(4, 5), t(4, 5), *weights).item() == pytest.approx(VALUES[key], rel=1e-10)


def test_by_hand() -> None:
    """Distances 1, 1, 2 on a line against an equilateral triangle: all off by a quarter or a half of the mean."""
    line = torch.tensor([[0.0], [1.0], [2.0]], dtype=torch.float64)
    triangle = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.5, 0.75**0.5]], dtype=torch.float64)
    expected = (4 * 0.5 * 0.25**2 + 2 * 0.5 * 0.5**2) / 9
    assert rkd_loss(line, triangle, 1, 0).item() == pytest.approx(expected)


def test_properties() -> None:
    check_properties(rkd_loss, s(4, 5), t(4, 5))


def test_invariant_to_scale_and_shift() -> None:
    assert rkd_loss(3 * s(4, 5) + 2, t(4, 5)).item() == pytest.approx(rkd_loss(s(4, 5), t(4, 5)).item())


def test_two_equal_images() -> None:
    twice = torch.cat([s(1, 5), s(3, 5)]).requires_grad_()  # the first two rows are the same
    loss = rkd_loss(twice, t(4, 5))
    loss.backward()
    assert loss.isfinite() and twice.grad is not None and twice.grad.isfinite().all()
