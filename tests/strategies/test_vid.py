from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from ickd_pl.data.batch import DataInfo
from ickd_pl.errors import IncompatiblePair
from ickd_pl.strategies.vid import VID, VariationalHead, vid_loss
from tests.strategies.golden_methods import blank_batch, make_features
from tests.strategies.reference import (
    VALUES,
    arrays,
    check_half,
    conv,
    filled_adapter,
    full_features,
    gradients,
    one_size,
    s,
    shapes,
    t,
)


def one_stage(mean: Tensor, teacher: Tensor) -> Tensor:
    scale = VariationalHead(1, mean.shape[1], 5.0).log_scale.detach().double()
    return vid_loss([mean], [scale], [teacher])


def test_reference() -> None:
    """With identity convolutions, so the mean is the student's map after a ReLU."""
    head = VariationalHead(6, 6, 5.0).double()
    for weight in head.regressor.parameters():
        torch.nn.init.dirac_(weight)
    loss = vid_loss([head(s(4, 6, 4, 4))], [head.log_scale], [t(4, 6, 4, 4)])
    assert loss.item() == pytest.approx(VALUES["vid"], rel=1e-6)  # the start of the scales is a float32
    assert head.log_scale.tolist() == pytest.approx([VALUES["vid log_scale"]] * 6)


def test_by_hand() -> None:
    """Difference 2 everywhere, variance 5."""
    zeros = torch.zeros(2, 3, 4, 4, dtype=torch.float64)
    assert one_stage(zeros + 2, zeros).item() == pytest.approx(0.5 * (4 / 5 + math.log(5)), rel=1e-6)


def test_gradients() -> None:
    assert gradients(one_stage, s(4, 6, 4, 4), t(4, 6, 4, 4)).abs().sum() > 0
    gradients(one_stage, torch.zeros(1, 6, 4, 4, dtype=torch.float64), torch.zeros(1, 6, 4, 4, dtype=torch.float64))
    check_half(lambda a, b: vid_loss([a], [torch.ones(6)], [b]), s(4, 6, 4, 4), t(4, 6, 4, 4))


def test_sizes_and_channels_may_differ_and_all_parts_learn() -> None:
    student, teacher = shapes("s", stages=((4, 8, 8), (6, 2, 2))), shapes("t", stages=((3, 4, 4), (5, 4, 4)))
    strategy = VID()
    strategy.check(student, teacher)
    adapter = strategy.build(student, teacher, DataInfo(num_classes=5))
    features = [
        make_features(stages=tuple(torch.randn(2, *shape) for shape in net.stages)) for net in (student, teacher)
    ]
    strategy.loss(features[0], features[1], blank_batch(2), adapter).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in adapter.parameters())


def test_unequal_stage_counts_raise() -> None:
    with pytest.raises(IncompatiblePair, match="stage 2 of b has no partner"):
        VID().check(shapes("a", stages=((4, 8, 8),)), shapes("b"))


def test_loss_equals_numpy() -> None:
    student = full_features(1, (4, 9, 9), (5, 4, 4), (6, 3, 3))
    teacher = full_features(2, (3, 9, 9), (2, 7, 7), (4, 2, 2))
    adapter = filled_adapter(VID(), student, teacher)
    values, expected = arrays(adapter), 0.0
    for k, pair in enumerate(zip(student.stages, teacher.stages, strict=True)):
        x, target = one_size(*pair)  # before the convolutions
        for layer in (0, 2, 4):
            x = conv(np.maximum(x, 0) if layer else x, values[f"{k}.regressor.{layer}.weight"])
        variance = np.log1p(np.exp(values[f"{k}.log_scale"]))[:, None, None] + 1e-5
        expected += ((x - target) ** 2 / variance + np.log(variance)).mean() / 2
    value = VID().loss(student, teacher, blank_batch(4), adapter)
    assert value.item() == pytest.approx(expected, rel=1e-10)


def test_parameters() -> None:
    adapter = VID(init_variance=2.0).build(
        shapes("s", stages=((4, 8, 8),)), shapes("t", stages=((3, 4, 4),)), DataInfo(num_classes=5)
    )
    assert {name: tuple(p.shape) for name, p in adapter.named_parameters()} == {
        "0.log_scale": (3,),
        "0.regressor.0.weight": (3, 4, 1, 1),
        "0.regressor.2.weight": (3, 3, 1, 1),
        "0.regressor.4.weight": (3, 3, 1, 1),
    }
    start = np.log1p(np.exp(adapter.get_parameter("0.log_scale").tolist())) + 1e-5
    assert start.tolist() == pytest.approx([2.0] * 3)
