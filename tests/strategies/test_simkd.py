"""SimKD: its loss, and the head by which its student predicts. Files and packs: test_contract_abilities.py."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from ickd_pl import DistillationModule, IncompatiblePair, UserError, get_model
from ickd_pl.data.batch import DataInfo
from ickd_pl.models.features import Classifier
from ickd_pl.models.reused import ReusedClassifier
from ickd_pl.strategies.simkd import SimKD, simkd_loss
from tests.strategies.golden_methods import make_features
from tests.strategies.reference import arrays, batch_norm, check_properties, conv, one_size, s, shapes, t


def test_by_hand() -> None:
    assert simkd_loss(2 * torch.ones(1, 1, 2, 2), torch.tensor([[[[1.0, 3], [1, 1]]]])).item() == 1.0
    assert simkd_loss(torch.ones(2, 3, 8, 8), torch.zeros(2, 3, 4, 4)).item() == 1.0  # both orders of sizes
    assert simkd_loss(torch.ones(2, 3, 4, 4), torch.zeros(2, 3, 8, 8)).item() == 1.0
    # The largest is averaged, not sampled.
    assert simkd_loss(torch.zeros(1, 1, 1, 1), torch.tensor([[[[0.0, 0], [0, 4]]]])).item() == 1.0


def test_properties() -> None:
    check_properties(simkd_loss, s(4, 6, 4, 4), t(4, 6, 4, 4))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("sizes", [(4, 4), (8, 4), (2, 4)])
def test_head_equals_numpy(sizes: tuple[int, int], training: bool) -> None:
    """Projector of three convolutions and ReLUs on the last stage, mean, and the teacher's layer."""
    student, side = s(3, 5, sizes[0], sizes[0]), sizes[1]
    head = ReusedClassifier(5, 6, 2, [side, side], 7).double().train(training)
    for number, value in enumerate(head.state_dict().values()):
        if value.is_floating_point():
            value.copy_(0.5 * s(*value.shape) + 0.01 * number)
            value.abs_() if value.dim() == 1 else None
    layer = Classifier(t(7, 6), t(7))
    assert not head.ready
    head.take(layer)
    values = {name.removeprefix("project."): value for name, value in arrays(head).items()}
    found = head(make_features(logits=torch.zeros(3, 7), stages=(student, student), final=student[:, :1]))
    x, _ = one_size(student, torch.zeros(3, 5, side, side, dtype=torch.float64))
    for number, padding in ((0, 0), (3, 1), (6, 0)):
        x = conv(x, values[f"{number}.weight"], padding=padding)
        x = np.maximum(batch_norm(x, values, f"{number + 1}", training), 0)
    expected = x.mean((2, 3)) @ layer.weight.numpy().T + t(7).numpy()
    np.testing.assert_allclose(found.final.detach(), x, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(found.logits.detach(), expected, rtol=1e-9)
    assert head.ready and not any(name in ("weight", "bias") for name, _ in head.named_parameters())


def test_head_fits_the_networks() -> None:
    student = shapes("s", stages=((4, 8, 8), (5, 4, 4)))
    teacher = replace(shapes("t", stages=((4, 8, 8), (9, 6, 6))), classifier=(5, 9))
    head = SimKD(factor=4).build(student, teacher, DataInfo(num_classes=5))
    expected = {"in_channels": 5, "out_channels": 9, "factor": 4, "size": [6, 6], "num_classes": 5}
    assert isinstance(head, ReusedClassifier) and head.settings() == expected


def test_refusals() -> None:
    teacher = replace(shapes("t"), classifier=(5, 6))
    SimKD().check(shapes("s"), teacher)  # the student's own last layer is not used
    with pytest.raises(IncompatiblePair, match=r"last layer of t, which does not say which that is: set classifier"):
        SimKD().check(shapes("s"), shapes("t"))
    with pytest.raises(IncompatiblePair, match=r"last layer of t reads 7 numbers, but its map has 6 channels"):
        SimKD().check(shapes("s"), replace(teacher, classifier=(5, 7)))
    with pytest.raises(IncompatiblePair, match=r"factor 7 leaves none of the 6 channels of t"):
        SimKD(factor=7).check(shapes("s"), teacher)
    with pytest.raises(UserError, match=r"ReusedClassifier: expected up to 4096 channels"):
        ReusedClassifier(5, 10**9, 2, [4, 4], 10)
    with pytest.raises(UserError, match=r"factor: expected a whole number, 1 or more, got 0"):
        ReusedClassifier(5, 6, 0, [4, 4], 10)


def test_the_prediction_is_the_teachers_layer_and_the_own_one_is_left_out() -> None:
    """Also before any fit: the teacher's layer is taken when it is asked for."""
    teacher = get_model("resnet8x4", 10).eval()
    module = DistillationModule("resnet8", teacher, strategies=[SimKD()], ce_weight=0.0, num_classes=10).eval()
    image = torch.randn(2, 3, 32, 32)
    found = module(image)
    with torch.no_grad():
        module.student.fc.weight.zero_()  # type: ignore[union-attr, operator]
        assert torch.equal(module(image), found)
        module.adapters["simkd"].project[-2].bias.fill_(9)  # type: ignore[index, union-attr, operator]
        assert not torch.equal(module(image), found)
