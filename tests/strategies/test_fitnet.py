from __future__ import annotations

import numpy as np
import pytest
import torch

from ickd_pl.data.batch import DataInfo
from ickd_pl.errors import IncompatiblePair
from ickd_pl.strategies.components.regressors import ConvRegressor
from ickd_pl.strategies.fitnet import FitNet, fitnet_loss
from tests.strategies.golden_methods import blank_batch
from tests.strategies.reference import (
    VALUES,
    arrays,
    check_properties,
    filled_adapter,
    full_features,
    regressed,
    s,
    shapes,
    t,
)


def test_reference() -> None:
    assert fitnet_loss(s(4, 6, 4, 4), t(4, 6, 4, 4)).item() == pytest.approx(VALUES["fitnet"], rel=1e-12)


def test_properties() -> None:
    check_properties(fitnet_loss, s(4, 6, 4, 4), t(4, 6, 4, 4))


@pytest.mark.parametrize(("size", "kernel"), [(8, (1, 1)), (4, (3, 3)), (16, (4, 4)), (5, (4, 4))])
def test_regressor_fits_the_size(size: int, kernel: tuple[int, int]) -> None:
    regressor = ConvRegressor((4, 8, 8), (6, size, size))
    assert regressor.conv.kernel_size == kernel
    assert regressor(torch.randn(2, 4, 8, 8)).shape == (2, 6, size, size)


def test_layer_is_the_second_stage() -> None:
    student, teacher = shapes("s"), shapes("t", stages=((4, 8, 8), (9, 4, 4)))
    regressor = FitNet().build(student, teacher, DataInfo(num_classes=5))
    assert regressor(torch.randn(2, 6, 4, 4)).shape == (2, 9, 4, 4)


def test_sizes_without_a_convolution_raise() -> None:
    student, teacher = shapes("small", stages=((4, 8, 8), (6, 2, 2))), shapes("large", stages=((4, 8, 8), (6, 8, 8)))
    with pytest.raises(IncompatiblePair, match=r"small.*large.*6x2x2.*6x8x8"):
        FitNet().check(student, teacher)
    with pytest.raises(IncompatiblePair, match=r"hint_layer 3 is not in 0\.\.2"):
        FitNet(hint_layer=3).check(shapes("a"), shapes("b"))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("hint_layer", [None, 0, 1, 2, 3])
def test_loss_equals_numpy(hint_layer: int | None, training: bool) -> None:
    """Of stem and three stages the chosen map (by default the second stage's), through convolution, norm and ReLU."""
    student = full_features(1, (4, 8, 8), (5, 4, 4), (6, 6, 6), stem=(3, 9, 9))
    teacher = full_features(2, (3, 4, 4), (2, 8, 8), (4, 4, 4), stem=(2, 9, 9))
    strategy = FitNet() if hint_layer is None else FitNet(hint_layer=hint_layer)
    position = 2 if hint_layer is None else hint_layer
    adapter = filled_adapter(strategy, student, teacher, training)
    hint, target = ((x.stem, *x.stages)[position].numpy() for x in (student, teacher))
    mapped = np.maximum(regressed(hint, arrays(adapter), target.shape[2], training), 0)
    expected = ((mapped - target) ** 2).mean()
    value = strategy.loss(student, teacher, blank_batch(4), adapter)
    assert value.item() == pytest.approx(expected, rel=1e-10)
