from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ickd_pl import DistillationModule, HookedNet, IncompatiblePair, LayerMap, UserError, get_model
from ickd_pl.models.features import Classifier
from ickd_pl.strategies.catkd import CATKD, catkd_loss
from tests.strategies.golden_methods import blank_batch, make_features
from tests.strategies.reference import averaged, check_properties, s, shapes, t


@pytest.mark.parametrize("normalise", [False, True])
@pytest.mark.parametrize("resolution", [1, 2, 3])
def test_equals_numpy(resolution: int, normalise: bool) -> None:
    """Class activation maps as a weighted sum of channels, averaged afterwards as in the original."""
    student, teacher, own, theirs = s(4, 6, 6, 6), t(4, 5, 9, 9), t(7, 6), s(7, 5)
    grids = []
    for x, weight in ((student, own), (teacher, theirs)):
        grid = averaged(np.einsum("bchw,kc->bkhw", x.numpy(), weight.numpy()), resolution)
        grids.append(grid / np.sqrt((grid**2).sum((2, 3), keepdims=True)) if normalise else grid)
    value = catkd_loss(student, own, teacher, theirs, resolution, normalise)
    assert value.item() == pytest.approx(((grids[0] - grids[1]) ** 2).mean(), rel=1e-9)
    heads = {"classifier": Classifier(own)}, {"classifier": Classifier(theirs, 9 * torch.ones(7))}
    strategy = CATKD(resolution=resolution, normalise=normalise)
    features = make_features(final=student, **heads[0]), make_features(final=teacher, **heads[1])
    assert strategy.loss(*features, blank_batch(4), None).item() == value.item()  # no bias counts


@pytest.mark.parametrize("normalise", [False, True])
def test_properties(normalise: bool) -> None:
    def loss(student: Tensor, teacher: Tensor) -> Tensor:
        weight = s(5, 6).to(torch.promote_types(student.dtype, torch.float32))
        value: Tensor = catkd_loss(student, weight, teacher, weight, 2, normalise)
        return value

    check_properties(loss, s(4, 6, 4, 4), t(4, 6, 4, 4))


@pytest.mark.parametrize("hooked", [False, True])
def test_student_without_bias(hooked: bool) -> None:
    """The bias stays in the state dict, is 0, and neither trained nor decayed; a student without one is as it is."""
    net: nn.Module = get_model("resnet8", 10)
    keys = list(net.state_dict())
    layers = LayerMap("conv1", ("layer3.0",), "layer3.0", "fc:in", classifier="fc") if hooked else None
    teacher = get_model("resnet8", 10).eval()
    module = DistillationModule(net, teacher, strategies=[CATKD()], num_classes=10, student_layers=layers)
    state = net.state_dict()
    assert sorted(state) == sorted(keys) and not state["fc.bias"].any()
    assert "fc.bias" not in dict(net.named_parameters())
    features = module.student.features(torch.randn(2, 3, 32, 32))
    assert features.classifier is not None
    torch.testing.assert_close(features.logits, features.pooled.flatten(1) @ features.classifier.weight.T)
    CATKD().prepare(HookedNet(nn.Sequential(nn.Flatten(), nn.Linear(3, 2)), LayerMap("0", ("0",), "0", "0")))
    bare = nn.Sequential(nn.Flatten(), nn.Linear(3, 2, bias=False))
    CATKD().prepare(HookedNet(bare, LayerMap("0", ("0",), "0", "0", classifier="1")))
    assert bare[1].bias is None


def test_refusals() -> None:
    net = replace(shapes("net"), classifier=(5, 6))
    CATKD().check(net, net)
    for student, teacher in ((shapes("blank"), net), (net, shapes("blank"))):
        with pytest.raises(IncompatiblePair, match=r"CATKD cannot .*last layer of blank, which does not"):
            CATKD().check(student, teacher)
    with pytest.raises(IncompatiblePair, match=r"last layer of wide reads 7 numbers, but its map has 6 channels"):
        CATKD().check(net, replace(shapes("wide"), classifier=(5, 7)))
    with pytest.raises(UserError, match=r"student_weight \(K, C\) and .*, got \(5, 6\) and \(4, 6\)"):
        catkd_loss(s(4, 6, 4, 4), s(5, 6), t(4, 6, 4, 4), t(4, 6))
    with pytest.raises(UserError, match=r"catkd_loss\.resolution: expected a whole number, 1 or more, got 0"):
        catkd_loss(s(4, 6, 4, 4), s(5, 6), t(4, 6, 4, 4), t(5, 6), 0)
