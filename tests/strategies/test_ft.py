from __future__ import annotations

import numpy as np
import pytest
import torch

from ickd_pl.data.batch import DataInfo
from ickd_pl.strategies.ft import FT, FactorAdapter, ft_loss
from tests.strategies.golden_methods import blank_batch, make_features
from tests.strategies.reference import (
    VALUES,
    Array,
    arrays,
    batch_norm,
    check_properties,
    conv,
    conv_transposed,
    filled_adapter,
    full_features,
    one_size,
    s,
    shapes,
    t,
    unit,
)


def test_reference() -> None:
    assert ft_loss(s(4, 6, 4, 4), t(4, 6, 4, 4)).item() == pytest.approx(VALUES["ft"], rel=1e-10)


def test_by_hand() -> None:
    factor = torch.tensor([3.0, 0.0]).reshape(1, 1, 1, 2)
    assert ft_loss(factor, factor.flip(3)).item() == pytest.approx(1.0)


def test_properties() -> None:
    check_properties(ft_loss, s(4, 6, 4, 4), t(4, 6, 4, 4))


def test_sizes_may_differ() -> None:
    assert ft_loss(s(4, 3, 4, 4), t(4, 6, 8, 8)).isfinite()


def test_each_part_learns_in_its_stage() -> None:
    strategy, student, teacher = FT(), shapes("s"), shapes("t", stages=((4, 8, 8), (8, 8, 8)))
    adapter = strategy.build(student, teacher, DataInfo(num_classes=5))
    assert isinstance(adapter, FactorAdapter)
    f_s, f_t = (
        make_features(stages=tuple(torch.randn(2, *shape) for shape in net.stages)) for net in (student, teacher)
    )
    strategy.pretrain_loss(f_s, f_t, blank_batch(2), adapter).backward()
    assert all(p.grad is not None for p in adapter.paraphraser.parameters())
    assert all(p.grad is None for p in adapter.translator.parameters())
    adapter.zero_grad()
    strategy.loss(f_s, f_t, blank_batch(2), adapter).backward()
    assert all(p.grad is None for p in adapter.paraphraser.parameters())
    assert all(p.grad is not None for p in adapter.translator.parameters())
    assert strategy.pretrain_modules(torch.nn.Linear(1, 1), adapter) == [adapter.paraphraser]
    assert strategy.frozen_in_main(adapter) == [adapter.paraphraser]
    assert adapter.paraphraser.encoder(f_t.stages[-1]).shape == (2, 4, 8, 8)


def leaky(x: Array) -> Array:
    return np.where(x > 0, x, 0.1 * x)


def factor(x: Array, values: dict[str, Array]) -> Array:
    """The teacher's factor by the paraphraser's encoder."""
    for layer in (0, 3, 6):
        name = f"paraphraser.encoder.{layer}"
        x = leaky(conv(x, values[f"{name}.weight"], values[f"{name}.bias"], padding=1))
    return x


FEATURES = full_features(1, (4, 8, 8), (3, 6, 6)), full_features(2, (3, 8, 8), (5, 4, 4))  # with other final maps


@pytest.mark.parametrize("training", [True, False])
def test_loss_equals_numpy(training: bool) -> None:
    student, teacher = FEATURES
    adapter = filled_adapter(FT(), student, teacher, training)
    values, x = arrays(adapter), student.stages[-1].numpy()
    for layer in (0, 3, 6):
        name = f"translator.encoder.{layer}"
        x = conv(x, values[f"{name}.weight"], values[f"{name}.bias"], padding=1)
        x = leaky(batch_norm(x, values, f"translator.encoder.{layer + 1}", training))
    maps = one_size(torch.from_numpy(x), torch.from_numpy(factor(teacher.stages[-1].numpy(), values)))
    a, b = (unit((m**2).mean(1).reshape(4, -1), 1) for m in maps)
    value = FT().loss(student, teacher, blank_batch(4), adapter)
    assert value.item() == pytest.approx(np.abs(a - b).mean(), rel=1e-10)


def test_first_stage_equals_numpy() -> None:
    student, teacher = FEATURES
    adapter = filled_adapter(FT(), student, teacher)
    values, target = arrays(adapter), teacher.stages[-1].numpy()
    x = factor(target, values)
    for layer in (0, 3, 6):
        name = f"paraphraser.decoder.{layer}"
        x = leaky(conv_transposed(x, values[f"{name}.weight"], values[f"{name}.bias"]))
    value = FT().pretrain_loss(student, teacher, blank_batch(4), adapter)
    assert value.item() == pytest.approx(((x - target) ** 2).mean(), rel=1e-10)


@pytest.mark.parametrize(("rate", "width"), [(0.5, 2), (0.7, 3), (0.1, 1)])
def test_parameters(rate: float, width: int) -> None:
    """A student's map of 3 channels, a teacher's of 5; batch norm in the translator alone."""
    adapter = filled_adapter(FT(rate=rate), *FEATURES)
    convs = {name: tuple(p.shape) for name, p in adapter.named_parameters() if p.ndim == 4}
    assert convs == {
        "paraphraser.encoder.0.weight": (5, 5, 3, 3),
        "paraphraser.encoder.3.weight": (width, 5, 3, 3),
        "paraphraser.encoder.6.weight": (width, width, 3, 3),
        "paraphraser.decoder.0.weight": (width, width, 3, 3),
        "paraphraser.decoder.3.weight": (width, 5, 3, 3),  # a transposed one's: from, to
        "paraphraser.decoder.6.weight": (5, 5, 3, 3),
        "translator.encoder.0.weight": (3, 3, 3, 3),
        "translator.encoder.3.weight": (width, 3, 3, 3),
        "translator.encoder.6.weight": (width, width, 3, 3),
    }
    norms = {name for name, part in adapter.named_modules() if isinstance(part, torch.nn.BatchNorm2d)}
    assert norms == {"translator.encoder.1", "translator.encoder.4", "translator.encoder.7"}
