from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from ickd_pl.data.batch import DataInfo
from ickd_pl.errors import IncompatiblePair
from ickd_pl.models import get_model
from ickd_pl.strategies.ab import AB, ab_loss
from tests.strategies.golden_methods import blank_batch, make_features
from tests.strategies.reference import (
    VALUES,
    arrays,
    check_half,
    filled_adapter,
    full_features,
    gradients,
    regressed,
    s,
    shapes,
    t,
)


@pytest.mark.parametrize(("key", "count"), [("ab", 1), ("ab three stages", 3)])
def test_reference(key: str, count: int) -> None:
    assert ab_loss([s(4, 6, 4, 4)] * count, [t(4, 6, 4, 4)] * count).item() == pytest.approx(VALUES[key], rel=1e-10)


def test_by_hand() -> None:
    """Wrong side by 1, right side but too near by 0.5, right side and far."""
    student, teacher = torch.tensor([1.0, -0.5, 3.0]), torch.tensor([-2.0, 0.0, 0.1])
    value = ab_loss([student.reshape(1, 3, 1, 1)], [teacher.reshape(1, 3, 1, 1)])
    assert value.item() == pytest.approx(0.003 * (2**2 + 0.5**2))


def test_zero_on_the_right_side_and_gradients() -> None:
    assert ab_loss([5 * t(4, 6, 4, 4).sign()], [t(4, 6, 4, 4)]).item() == 0

    def one(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return ab_loss([a], [b])

    assert gradients(one, s(4, 6, 4, 4), t(4, 6, 4, 4)).abs().sum() > 0
    assert gradients(one, torch.zeros(1, 6, 4, 4), torch.zeros(1, 6, 4, 4)).abs().sum() > 0
    check_half(one, s(4, 6, 4, 4), t(4, 6, 4, 4))


def test_connectors_only_where_shapes_differ() -> None:
    strategy, data = AB(), DataInfo(num_classes=5)
    same, other = shapes("a"), shapes("b", stages=((4, 8, 8), (9, 8, 8)))
    assert not list(strategy.build(same, same, data).parameters())
    adapter = strategy.build(same, other, data)
    maps = [tuple(torch.randn(2, *shape) for shape in net.stages) for net in (same, other)]
    features = [make_features(preact=m) for m in maps]
    strategy.pretrain_loss(features[0], features[1], blank_batch(2), adapter).backward()
    learned = [p for p in adapter.parameters() if p.grad is not None]
    assert len(learned) == len(list(adapter.parameters())) == 4  # convolution and batch norm of the second stage
    assert strategy.frozen_in_main(adapter) == [adapter]
    assert strategy.pretrain_modules(get_model("resnet8"), adapter)[-1] is adapter


def test_main_stage_and_errors() -> None:
    features = make_features(logits=torch.randn(2, 5))
    assert AB().loss(features, features, blank_batch(2), None).item() == 0
    with pytest.raises(RuntimeError, match="preact"):
        AB().pretrain_loss(features, features, blank_batch(2), torch.nn.ModuleList())
    with pytest.raises(IncompatiblePair, match="stage 1 of the student, 4x2x2, to that of the teacher, 4x8x8"):
        AB().check(shapes("a", stages=((4, 2, 2),)), shapes("b", stages=((4, 8, 8),)))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("margin", [None, 0.5])
def test_loss_equals_numpy(margin: float | None, training: bool) -> None:
    """On the stage ends before their ReLU, which are not the stages here; the second pair's shapes agree."""
    student = full_features(1, (4, 8, 8), (5, 4, 4), (6, 3, 3), (3, 2, 2))
    teacher = full_features(2, (3, 8, 8), (5, 4, 4), (4, 6, 6), (3, 1, 1))
    strategy, used = (AB(), 1.0) if margin is None else (AB(margin=margin), margin)
    adapter = filled_adapter(strategy, student, teacher, training)
    values, expected = arrays(adapter), 0.0
    for k in range(4):
        x, target = student.preact[k].numpy(), teacher.preact[k].numpy()
        if k != 1:
            x = regressed(x, values, target.shape[2], training, f"{k}.")
        short = used - np.where(target > 0, x, -x)
        expected += 0.003 * (np.maximum(short, 0) ** 2).sum() / 4 / 2 ** (3 - k)
    value = strategy.pretrain_loss(student, teacher, blank_batch(4), adapter)
    assert value.item() == pytest.approx(expected, rel=1e-10)


def test_connectors_are_built_for_the_maps_before_relu() -> None:
    student, teacher = full_features(1, (4, 8, 8)), full_features(2, (3, 8, 8))
    student, teacher = replace(student, stages=(student.stem,)), replace(teacher, stages=(teacher.stem,))
    assert filled_adapter(AB(), student, teacher)[0].conv.weight.shape == (3, 4, 1, 1)
