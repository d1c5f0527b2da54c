from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch

from ickd_pl.errors import IncompatiblePair, UserError
from ickd_pl.models import get_model
from ickd_pl.models.features import FeatureShapes
from ickd_pl.strategies.fsp import FSP, fsp_loss
from tests.strategies.golden_methods import blank_batch, make_features
from tests.strategies.reference import VALUES, check_properties, full_features, one_size, s, shapes, t


def test_reference() -> None:
    value = fsp_loss([s(4, 3, 8, 8), s(4, 6, 4, 4)], [t(4, 3, 8, 8), t(4, 6, 4, 4)]).item()
    assert value == pytest.approx(VALUES["fsp"], rel=1e-10)


def test_by_hand() -> None:
    """One channel each: flow 2 * 3 against 1 * 1."""
    maps = [torch.full((1, 1, 2, 2), value) for value in (2.0, 3.0, 1.0, 1.0)]
    assert fsp_loss(maps[:2], maps[2:]).item() == pytest.approx(25.0)


def test_properties() -> None:
    check_properties(
        lambda a, b: fsp_loss([a, a[:, :3, ::2, ::2]], [b, b[:, :3, ::2, ::2]]), s(4, 6, 4, 4), t(4, 6, 4, 4)
    )


def test_main_stage_is_plain_cross_entropy() -> None:
    logits = torch.randn(2, 5, dtype=torch.bfloat16)
    loss = FSP().loss(make_features(logits=logits), make_features(logits=logits), blank_batch(2), None)
    assert loss.shape == () and loss.dtype == torch.float32 and loss.item() == 0


def test_first_stage_trains_the_feature_layers() -> None:
    net = get_model("resnet8", 5)
    trained = {p for module in FSP().pretrain_modules(net, None) for p in module.parameters()}
    assert trained and not trained & set(net.fc.parameters())
    with pytest.raises(UserError, match="Linear has no feat_modules"):
        FSP().pretrain_modules(torch.nn.Linear(2, 2), None)


def test_other_channels_raise() -> None:
    with pytest.raises(IncompatiblePair, match=r"wide.*thin.*stage 2 is 6x4x4 against 5x4x4"):
        FSP().check(shapes("wide"), shapes("thin", stages=((4, 8, 8), (5, 4, 4))))
    FSP().check(shapes("a"), shapes("b", stages=((4, 4, 4), (6, 2, 2))))


def test_loss_equals_numpy() -> None:
    """From the stem over three stages, of growing and of shrinking sizes."""
    student = full_features(1, (4, 9, 9), (5, 4, 4), (6, 6, 6), stem=(3, 9, 9))
    teacher = full_features(2, (4, 5, 5), (5, 5, 5), (6, 2, 2), stem=(3, 7, 7))
    flows = []
    for net in (student, teacher):
        maps = (net.stem, *net.stages)
        pairs = [one_size(a, b) for a, b in pairwise(maps)]
        flows.append([np.einsum("bihw,bjhw->bij", a, b) / (a.shape[2] * a.shape[3]) for a, b in pairs])
    expected = sum(((a - b) ** 2).mean() for a, b in zip(*flows, strict=True))
    value = FSP().pretrain_loss(student, teacher, blank_batch(4), None)
    assert value.item() == pytest.approx(expected, rel=1e-10)


def test_stem_of_other_channels_raises() -> None:
    thin = FeatureShapes("thin", (5,), (3, 8, 8), ((4, 8, 8),), (4, 8, 8), (4,))
    with pytest.raises(IncompatiblePair, match="the stem is 4x8x8 against 3x8x8"):
        FSP().check(shapes("wide", stages=((4, 8, 8),)), thin)
