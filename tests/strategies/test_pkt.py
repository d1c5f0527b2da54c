from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from ickd_pl.strategies.pkt import PKT, pkt_loss
from tests.strategies.golden_methods import blank_batch
from tests.strategies.reference import VALUES, check_properties, full_features, s, t


def test_reference() -> None:
    assert pkt_loss(s(4, 5), t(4, 5)).item() == pytest.approx(VALUES["pkt"], rel=1e-10)


def test_by_hand() -> None:
    """Teacher: two orthogonal images, rows (2/3, 1/3). Student: two equal ones, rows (1/2, 1/2)."""
    expected = 2 * (2 / 3 * math.log(4 / 3) + 1 / 3 * math.log(2 / 3)) / 4
    teacher = torch.eye(2, dtype=torch.float64)
    assert pkt_loss(torch.ones_like(teacher), teacher).item() == pytest.approx(expected, rel=1e-5)


def test_properties() -> None:
    check_properties(pkt_loss, s(4, 5), t(4, 5))


def test_invariant_to_length() -> None:
    assert pkt_loss(7 * s(4, 5), t(4, 5)).item() == pytest.approx(pkt_loss(s(4, 5), t(4, 5)).item(), rel=1e-5)


def test_loss_equals_numpy() -> None:
    """On the pooled features, of unequal widths."""
    student, teacher = full_features(1, (4, 2, 2), width=6), full_features(2, (3, 2, 2), width=3)
    p = []
    for x in (student.pooled.numpy(), teacher.pooled.numpy()):
        near = [[(1 + a @ b / (np.linalg.norm(a) * np.linalg.norm(b))) / 2 for b in x] for a in x]
        p.append(np.array(near) / np.sum(near, 1, keepdims=True))
    expected = (p[1] * np.log(p[1] / p[0])).mean()
    value = PKT().loss(student, teacher, blank_batch(4), None)
    assert value.item() == pytest.approx(expected, rel=1e-4)  # without the 1e-7 that guards against zeros
