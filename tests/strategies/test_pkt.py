from __future__ import annotations

import math

import pytest
import torch

from ickd_pl.strategies.pkt import pkt_loss
from tests.strategies.reference import VALUES, check_properties, s, t


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
