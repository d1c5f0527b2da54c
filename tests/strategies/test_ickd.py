from __future__ import annotations

import pytest
import torch

from ickd_pl.adapters import ConvBN
from ickd_pl.data.batch import DataInfo
from ickd_pl.strategies.ickd import ICKD, ickd_loss
from tests.strategies.golden_methods import blank_batch, make_features
from tests.strategies.reference import VALUES, check_properties, s, shapes, t


def test_reference() -> None:
    student, teacher = s(4, 6, 4, 4), t(4, 6, 4, 4)
    assert ickd_loss(student, teacher).item() == pytest.approx(VALUES["ickd no embedding"], rel=1e-10)
    embed = ConvBN(6, 6).double()
    torch.nn.init.dirac_(embed.conv.weight)
    loss = ICKD().loss(make_features(final=student), make_features(final=teacher), blank_batch(4), embed)
    assert loss.item() == pytest.approx(VALUES["ickd"], rel=1e-10)


def test_by_hand() -> None:
    """Two orthogonal channels against two equal ones: identity against 1 / sqrt(2) everywhere, over B * C = 2."""
    half = 2**-0.5
    student, teacher = torch.eye(2).reshape(1, 2, 1, 2), torch.ones(1, 2, 1, 2)
    assert ickd_loss(student, teacher).item() == pytest.approx((2 * (1 - half) ** 2 + 2 * half**2) / 2)


def test_properties() -> None:
    check_properties(ickd_loss, s(4, 6, 4, 4), t(4, 6, 4, 4))


def test_sizes_may_differ_and_positions_do_not_matter() -> None:
    student, teacher = s(4, 6, 4, 4), t(4, 6, 8, 8)
    moved = teacher.flatten(2)[:, :, torch.randperm(64)].reshape(4, 6, 8, 8)
    assert ickd_loss(student, moved).item() == pytest.approx(ickd_loss(student, teacher).item())


def test_embedding_keeps_no_unused_weight() -> None:
    adapter = ICKD().build(shapes("s"), shapes("t", stages=((4, 8, 8), (9, 4, 4))), DataInfo(num_classes=5))
    assert {name: tuple(p.shape) for name, p in adapter.named_parameters()} == {
        "conv.weight": (9, 6, 1, 1), "bn.weight": (9,), "bn.bias": (9,),
    }  # fmt: skip
