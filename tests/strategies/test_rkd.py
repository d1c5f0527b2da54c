from __future__ import annotations

import numpy as np
import pytest
import torch

from ickd_pl.strategies.rkd import RKD, rkd_loss
from tests.strategies.golden_methods import blank_batch
from tests.strategies.reference import VALUES, check_properties, full_features, s, t


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


def test_loss_equals_numpy() -> None:
    """On the pooled features; one image of the student lies so far out that its distances are off by more than 1."""
    student, teacher = full_features(1, (4, 2, 2), width=6), full_features(2, (3, 2, 2), width=3)
    student.pooled[0] *= 30

    def huber(x: np.ndarray) -> np.ndarray:
        return np.where(np.abs(x) < 1, x * x / 2, np.abs(x) - 0.5)

    distances, cosines = [], np.zeros((2, 4, 4, 4))
    for k, x in enumerate((student.pooled.numpy(), teacher.pooled.numpy())):
        d = np.array([[np.linalg.norm(x[j] - x[i]) for j in range(4)] for i in range(4)])
        distances.append(d / d[d > 0].mean())
        for i, a, b in np.ndindex(4, 4, 4):
            if i not in (a, b):
                cosines[k, i, a, b] = (x[a] - x[i]) @ (x[b] - x[i]) / (d[i, a] * d[i, b])
    off = distances[0] - distances[1]
    assert (np.abs(off) > 1).any()
    expected = 2 * huber(off).mean() + 3 * huber(cosines[0] - cosines[1]).mean()
    value = RKD(distance_weight=2, angle_weight=3).loss(student, teacher, blank_batch(4), None)
    assert value.item() == pytest.approx(expected, rel=1e-10)
