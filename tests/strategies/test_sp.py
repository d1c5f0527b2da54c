from __future__ import annotations

import pytest
import torch

from ickd_pl.data.batch import Batch
from ickd_pl.strategies.sp import SP, sp_loss
from tests.strategies.golden_methods import blank_batch, make_features
from tests.strategies.reference import VALUES, check_properties, full_features, s, t, unit


@pytest.mark.parametrize(("key", "channels"), [("sp", 6), ("sp 3 channels", 3)])
def test_reference(key: str, channels: int) -> None:
    assert sp_loss(s(4, channels, 4, 4), t(4, 6, 4, 4)).item() == pytest.approx(VALUES[key], rel=1e-10)


def test_by_hand() -> None:
    """Two orthogonal images against two equal ones: identity against 1 / sqrt(2) everywhere."""
    half = 2**-0.5
    expected = (2 * (1 - half) ** 2 + 2 * half**2) / 4
    assert sp_loss(torch.eye(2), torch.ones(2, 3)).item() == pytest.approx(expected)


def test_properties() -> None:
    check_properties(sp_loss, s(4, 6, 4, 4), t(4, 6, 4, 4))


def test_takes_the_last_stage() -> None:
    a, b = s(4, 6, 4, 4), t(4, 3, 8, 8)
    student, teacher = make_features(stages=(b, a)), make_features(stages=(a, b))
    batch = Batch(a, torch.zeros(4).long(), torch.zeros(4).long())
    assert SP().loss(student, teacher, batch, None) == sp_loss(a, b)


def test_loss_equals_numpy() -> None:
    student = full_features(1, (4, 8, 8), (5, 4, 4), final=(5, 4, 4))
    teacher = full_features(2, (3, 8, 8), (2, 3, 3), final=(2, 3, 3))
    a, b = (x.stages[-1].numpy().reshape(4, -1) for x in (student, teacher))
    expected = ((unit(a @ a.T, 1) - unit(b @ b.T, 1)) ** 2).sum() / 16
    assert SP().loss(student, teacher, blank_batch(4), None).item() == pytest.approx(expected, rel=1e-10)
