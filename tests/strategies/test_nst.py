from __future__ import annotations

import numpy as np
import pytest
import torch

from ickd_pl.errors import IncompatiblePair
from ickd_pl.strategies.nst import NST, nst_loss
from tests.strategies.golden_methods import blank_batch
from tests.strategies.reference import VALUES, check_properties, full_features, one_size, s, shapes, t, unit


@pytest.mark.parametrize(("key", "size"), [("nst", 4), ("nst pooled", 8)])
def test_reference(key: str, size: int) -> None:
    assert nst_loss([s(4, 6, 4, 4)], [t(4, 6, size, size)]).item() == pytest.approx(VALUES[key], rel=1e-10)


def test_by_hand() -> None:
    """One channel against an orthogonal one: 1 + 1 - 0."""
    channel = torch.tensor([3.0, 0.0]).reshape(1, 1, 1, 2)
    assert nst_loss([channel], [channel.flip(3)]).item() == pytest.approx(2.0)


@pytest.mark.parametrize("size", [4, 1])
def test_equals_the_sum_over_pairs_of_channels(size: int) -> None:
    """For more positions than channels, and for fewer."""
    student, teacher = s(2, 3, size, 2), t(2, 5, size, 2)
    a, b = (torch.nn.functional.normalize(x.flatten(2), dim=2) for x in (student, teacher))

    def kernel(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return (x[:, :, None] * y[:, None]).sum(-1).square().mean()

    expected = kernel(b, b) + kernel(a, a) - 2 * kernel(a, b)
    torch.testing.assert_close(nst_loss([student], [teacher]), expected)


def test_properties() -> None:
    check_properties(lambda a, b: nst_loss([a], [b]), s(4, 6, 4, 4), t(4, 6, 4, 4))


def test_unequal_stage_counts_raise() -> None:
    with pytest.raises(IncompatiblePair, match="stage 2 of a has no partner"):
        NST().check(shapes("a"), shapes("b", stages=((4, 8, 8),)))


def test_loss_equals_numpy() -> None:
    """Three stages; the larger map is once the student's, once the teacher's."""
    student = full_features(1, (4, 9, 9), (5, 4, 4), (6, 3, 3))
    teacher = full_features(2, (3, 9, 9), (2, 7, 7), (4, 2, 2))
    expected = 0.0
    for pair in zip(student.stages, teacher.stages, strict=True):
        a, b = (unit(x.reshape(4, x.shape[1], -1), 2) for x in one_size(*pair))
        for factor, x, y in ((1, a, a), (1, b, b), (-2, a, b)):
            expected += factor * (np.einsum("bip,bjp->bij", x, y) ** 2).mean()
    value = NST().loss(student, teacher, blank_batch(4), None)
    assert value.item() == pytest.approx(expected, rel=1e-10)
