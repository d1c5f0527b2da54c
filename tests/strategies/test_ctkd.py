from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from ickd_pl import UserError
from ickd_pl.data.batch import DataInfo
from ickd_pl.strategies.components.logits import standardised
from ickd_pl.strategies.ctkd import CTKD, Temperature, ctkd_loss
from ickd_pl.strategies.kd import kd_loss
from tests.strategies.golden_methods import blank_batch, make_features
from tests.strategies.reference import check_properties, s, shapes, t


def temperature_of(strategy: CTKD) -> Temperature:
    built = strategy.build(shapes(), shapes(), DataInfo(num_classes=5))
    assert isinstance(built, Temperature)
    return built.double()


def test_is_kd_at_the_temperature() -> None:
    start = temperature_of(CTKD())(torch.tensor(-1.0))
    assert start.item() == pytest.approx(1 + 20 / (1 + math.exp(-1)))
    student, teacher = make_features(logits=3 * s(4, 10)), make_features(logits=4 * t(4, 10))
    value = CTKD().loss(student, teacher, blank_batch(4), temperature_of(CTKD()))
    assert value.item() == pytest.approx(kd_loss(3 * s(4, 10), 4 * t(4, 10), start.item()).item(), rel=1e-12)
    value = CTKD(standardise=True).loss(student, teacher, blank_batch(4), temperature_of(CTKD()))
    expected = kd_loss(standardised(s(4, 10)), standardised(t(4, 10)), start.item()).item()  # no scale is left
    assert value.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("eps", [0.0, 1e-7])
def test_properties(eps: float) -> None:
    def loss(student: Tensor, teacher: Tensor) -> Tensor:
        value: Tensor = ctkd_loss(student, teacher, torch.tensor(4.0), eps)
        return value

    check_properties(loss, s(4, 10), t(4, 10)) if not eps else None
    own = torch.stack([ctkd_loss(s(4, 10)[[i]], t(4, 10)[[i]], torch.tensor(2.0 + i), eps) for i in range(4)]).mean()
    assert ctkd_loss(s(4, 10), t(4, 10), torch.arange(2.0, 6.0)[:, None], eps).item() == pytest.approx(own.item())


def test_curriculum() -> None:
    """The original's numbers for epochs 1 to 12; the temperature itself does not depend on the epoch."""
    strategy, part = CTKD(), temperature_of(CTKD())
    expected = [-0.0245, -0.0955, -0.2061, -0.3455, -0.5, -0.6545, -0.7939, -0.9045, -0.9755, -1, -1, -1]
    logits = 3 * s(4, 10), 4 * t(4, 10)
    found, values = [], []
    for epoch in [None, *range(1, 13)]:
        strategy.main_epoch = None if epoch is None else torch.tensor(epoch)
        part.theta.grad = None
        value = strategy.loss(*(make_features(logits=x) for x in logits), blank_batch(4), part)
        value.backward()
        values.append(value.item())
        assert part.theta.grad is not None
        found.append(part.theta.grad.item())
    assert len(set(values)) == 1
    theta = torch.ones(1, dtype=torch.float64, requires_grad=True)
    ctkd_loss(*logits, 1 + 20 * theta.sigmoid()).backward()
    assert theta.grad is not None
    assert [grad / theta.grad.item() for grad in found] == pytest.approx([-1, *expected], abs=6e-5)


def test_other_arguments() -> None:
    strategy = CTKD(strength=0.5, curriculum_epochs=4)
    strategy.main_epoch = torch.tensor(2)
    assert strategy.factor().item() == pytest.approx(-0.25)
    assert temperature_of(CTKD(lowest=2, span=4))(torch.tensor(1.0)).item() == pytest.approx(2 + 4 / (1 + math.exp(-1)))
    with pytest.raises(UserError, match=r"ctkd_loss: expected student \(B, K\) and teacher \(B, K\)"):
        ctkd_loss(s(4, 10), t(1, 10), torch.tensor(4.0), 1e-7)
    with pytest.raises(UserError, match=r"ctkd_loss\.eps: expected 0 or more, got -1"):
        ctkd_loss(s(4, 10), t(4, 10), torch.tensor(4.0), -1)
