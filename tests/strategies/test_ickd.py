from __future__ import annotations

import pytest
import torch

from ickd_pl.data.batch import DataInfo
from ickd_pl.strategies.components.regressors import ConvBN
from ickd_pl.strategies.ickd import ICKD, ickd_loss
from tests.strategies.golden_methods import blank_batch, make_features
from tests.strategies.reference import (
    VALUES,
    arrays,
    batch_norm,
    check_properties,
    conv,
    filled_adapter,
    full_features,
    s,
    shapes,
    t,
    unit,
)


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


@pytest.mark.parametrize("training", [True, False])
def test_loss_equals_numpy(training: bool) -> None:
    """On the map that enters the pooling, which is not the last stage's here."""
    student = full_features(1, (4, 8, 8), (6, 4, 4), final=(5, 4, 4))
    teacher = full_features(2, (3, 8, 8), (2, 3, 3), final=(3, 3, 3))
    adapter = filled_adapter(ICKD(), student, teacher, training)
    values = arrays(adapter)
    mapped = batch_norm(conv(student.final.numpy(), values["conv.weight"]), values, "bn", training)
    a, b = (x.reshape(4, 3, -1) for x in (mapped, teacher.final.numpy()))
    off = unit(a @ a.transpose(0, 2, 1), 2) - unit(b @ b.transpose(0, 2, 1), 2)
    value = ICKD().loss(student, teacher, blank_batch(4), adapter)
    assert value.item() == pytest.approx((off**2).sum() / (4 * 3), rel=1e-10)
