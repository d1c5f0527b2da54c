from __future__ import annotations

import pytest
import torch

from ickd_pl.errors import IncompatiblePair
from ickd_pl.strategies.kdsvd import KDSVD, kdsvd_loss, leading_vectors
from tests.strategies.golden_methods import blank_batch
from tests.strategies.reference import check_properties, full_features, kdsvd_terms, s, shapes, t


def two_stages(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return kdsvd_loss([a, a[:, :5, ::2, ::2]], [b, b[:, :5, ::2, ::2]])


def test_properties() -> None:
    check_properties(two_stages, s(4, 6, 4, 4), t(4, 6, 4, 4))


def test_signs_are_settled() -> None:
    """A map and its negative have the same singular vectors up to sign."""
    vectors, values = leading_vectors(s(4, 6, 4, 4), 2)
    torch.testing.assert_close(leading_vectors(-s(4, 6, 4, 4), 2), (vectors, values))
    assert (vectors.sum(dim=1) >= 0).all()
    torch.testing.assert_close(vectors.square().sum(1), torch.ones(4, 2, dtype=torch.float64))


def test_by_hand() -> None:
    """Maps of rank one: the first vector is the channels' profile."""
    profile = torch.tensor([1.0, 2.0, 2.0, 0.0, 0.0]) / 3
    x = profile[None, :, None, None] * torch.rand(1, 1, 4, 4)
    torch.testing.assert_close(leading_vectors(x, 1)[0][0, :, 0], profile, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("channels", [5, 20])
def test_gradient_is_that_of_the_decomposition(channels: int) -> None:
    """Against differences, for more positions than channels and for fewer."""
    x = s(2, channels, 3, 4).requires_grad_()
    direction = t(channels, 3)
    assert torch.autograd.gradcheck(lambda x: (leading_vectors(x, 3)[0] * direction).sum(), (x,))


def test_dead_channels_give_no_nan() -> None:
    x = s(4, 6, 4, 4)
    x[:, 1:] = 0
    x.requires_grad_()
    two_stages(x, t(4, 6, 4, 4)).backward()
    assert x.grad is not None and x.grad.isfinite().all()


def test_other_channels_and_too_few_vectors_raise() -> None:
    with pytest.raises(IncompatiblePair, match="stage 2 is 6x4x4 against 5x4x4"):
        KDSVD().check(shapes("a"), shapes("b", stages=((4, 8, 8), (5, 4, 4))))
    with pytest.raises(IncompatiblePair, match="fewer than 5 singular vectors"):
        KDSVD(count=2).check(shapes("a"), shapes("b"))


@pytest.mark.parametrize("count", [None, 1, 2])
def test_loss_equals_numpy(count: int | None) -> None:
    """Over three stages, with more positions than channels and with fewer."""
    student = full_features(1, (6, 4, 4), (9, 3, 3), (7, 3, 3))
    teacher = full_features(2, (6, 5, 5), (9, 3, 3), (7, 4, 4))
    strategy = KDSVD() if count is None else KDSVD(count=count)
    expected = kdsvd_terms(student.stages, teacher.stages, count or 1)
    value = strategy.loss(student, teacher, blank_batch(4), None)
    assert value.item() == pytest.approx(expected[0].sum(), rel=1e-10)


def test_the_reference_row_is_out_of_reach() -> None:
    """Why ``reference_values.json`` has no row for this loss.

    The table of values of the original files gives 0.0746 for "k=1 two stages (fs,fs3-as-s; ft,...)", on inputs by the
    formulas of ``s`` and ``t`` with fs (4, 6, 4, 4) and fs3 (4, 3, 4, 4). No choice of signs comes near it, neither for
    these two stages nor for other pairs of the table's maps. Where a value of the original is known together with its
    inputs, this loss equals it (see test_golden_losses.py).
    """
    row = 0.07459653866
    for second in ((4, 3, 4, 4), (4, 3, 8, 8), (4, 6, 4, 4), (4, 6, 8, 8)):
        terms = kdsvd_terms([s(4, 6, 4, 4), s(*second)], [t(4, 6, 4, 4), t(*second)], 1)
        lowest, highest = terms.min(0).sum(), terms.max(0).sum()
        ours = kdsvd_loss([s(4, 6, 4, 4), s(*second)], [t(4, 6, 4, 4), t(*second)]).item()
        rounding = 1e-12  # where one sign choice is the value itself, its last digit depends on the processor
        assert 0.004 < lowest - rounding < ours < highest + rounding < 0.046 < row
