from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.nn.functional import mse_loss

from ickd_pl.errors import IncompatiblePair
from ickd_pl.models.features import Classifier, FeatureShapes
from ickd_pl.strategies.srrl import SRRL, srrl_loss
from tests.strategies.golden_methods import blank_batch, built, make_features
from tests.strategies.reference import s, t


def test_the_sum_of_two_errors() -> None:
    expected = 2 * mse_loss(s(4, 3), t(4, 3)) + 5 * mse_loss(s(4, 2), t(4, 2))
    torch.testing.assert_close(srrl_loss(s(4, 3), s(4, 2), t(4, 3), t(4, 2), 2, 5), expected)


@pytest.mark.parametrize("connect", ["vector", "map"])
def test_the_gradient_goes_through_the_teachers_last_layer(connect: str) -> None:
    method = SRRL(feature_weight=0, connect=connect)  # type: ignore[arg-type]
    weight = t(2, 3).requires_grad_()
    final = s(4, 6, 2, 2).requires_grad_()
    student = make_features(final=final, pooled=final.mean((2, 3)), logits=s(4, 2))
    teacher = replace(make_features(pooled=t(4, 3), logits=t(4, 2)), classifier=Classifier(weight.detach()))
    adapter = built(method, student, teacher)
    assert adapter is not None
    adapter.double()
    loss = method.loss(student, teacher, blank_batch(4), adapter)
    loss.backward()
    assert final.grad is not None and final.grad.abs().sum() > 0 and weight.grad is None
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in adapter.parameters())
    given = final if connect == "map" else final.mean((2, 3), keepdim=True)
    vector = adapter(given).relu().mean((2, 3))
    torch.testing.assert_close(loss, mse_loss(vector @ weight.T, t(4, 2)))


def test_a_teacher_whose_last_layer_is_unknown() -> None:
    net = FeatureShapes("net", (5,), (4, 8, 8), ((4, 8, 8),), (4, 8, 8), (4,))
    with pytest.raises(IncompatiblePair, match="it applies the last layer of net, which does not say which that is"):
        SRRL().check(net, net)
