from __future__ import annotations

import pytest
import torch
from torch.nn.functional import interpolate, mse_loss

from ickd_pl.data.batch import DataInfo
from ickd_pl.errors import IncompatiblePair
from ickd_pl.strategies.reviewkd import Fusion, ReviewKD, reviewkd_loss
from tests.strategies.golden_methods import blank_batch, make_features
from tests.strategies.reference import check_properties, s, shapes, t

DATA = DataInfo(num_classes=5)


@pytest.mark.parametrize(("size", "expected"), [(8, 0.7226979523), (4, 0.6921476276), (1, 1.237976725)])
def test_reference(size: int, expected: float) -> None:
    """What mdistiller's file gives."""
    value = reviewkd_loss(s(4, 6, size, size), t(4, 6, size, size))
    assert value.item() == pytest.approx(expected, rel=1e-8)


def test_levels_are_summed_and_grids_are_coarser() -> None:
    """A map of two rows has the one grid of a single cell, which is a row wide at most."""
    for shape in ((4, 6, 2, 2), (4, 6, 2, 3)):
        one, other = s(*shape), t(*shape)
        means = mse_loss(one.mean((2, 3)), other.mean((2, 3)))
        expected = (mse_loss(one, other) + means / 2) / 1.5
        torch.testing.assert_close(reviewkd_loss([one, one], [other, other]), 2 * expected)


def test_properties() -> None:
    check_properties(reviewkd_loss, s(4, 6, 4, 4), t(4, 6, 4, 4))


def test_maps_are_fused_from_deep_to_shallow() -> None:
    """Each by the map below it, in the teacher's sizes; every part learns."""
    student, teacher = shapes("a"), shapes("b", stages=((5, 16, 16), (7, 8, 8)), width=9)
    chain = ReviewKD().build(student, teacher, DATA)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        given = make_features(
            stages=tuple(torch.randn(3, *shape) for shape in student.stages), pooled=torch.randn(3, *student.pooled)
        )
        taught = tuple(torch.randn(3, *shape) for shape in teacher.stages)
        target = make_features(stages=taught, preact=taught, pooled=torch.randn(3, *teacher.pooled))
    loss = ReviewKD().loss(given, target, blank_batch(3), chain)
    loss.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in chain.parameters())
    below, maps = None, []
    for fusion, x in zip(chain, (given.pooled[:, :, None, None], *given.stages[::-1]), strict=True):
        assert isinstance(fusion, Fusion)
        x = fusion.reduce(x)  # noqa: PLW2901
        if below is not None:
            assert fusion.attention is not None
            below = interpolate(below, x.shape[2:])
            one, other = fusion.attention(torch.cat([x, below], 1)).sigmoid().split(1, dim=1)
            x = x * one + below * other  # noqa: PLW2901
        below = interpolate(x, fusion.size)
        maps.append(fusion.expand(below))
    expected = reviewkd_loss(maps, [target.pooled[:, :, None, None], *taught[::-1]])
    torch.testing.assert_close(loss, expected)


def test_refuses_other_numbers_of_stages() -> None:
    with pytest.raises(IncompatiblePair, match="stage 3 of b has no partner"):
        ReviewKD().check(shapes("a"), shapes("b", stages=((4, 8, 8), (6, 4, 4), (6, 2, 2))))


def test_warmup() -> None:
    review = ReviewKD(weight=2, warmup_epochs=20)
    assert [review.weight_at(epoch) for epoch in (1, 2, 20, 21, None)] == [0.1, 0.2, 2, 2, 2]
