from __future__ import annotations

import pytest
import torch

from ickd_pl.data.batch import DataInfo
from ickd_pl.strategies.ft import FT, FactorAdapter, ft_loss
from tests.strategies.golden_methods import blank_batch, make_features
from tests.strategies.reference import VALUES, check_properties, s, shapes, t


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
