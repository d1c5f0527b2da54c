from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from ickd_pl.errors import IncompatiblePair
from ickd_pl.models.features import Classifier, FeatureShapes
from ickd_pl.strategies.dkd import dkd_loss
from ickd_pl.strategies.kd import kd_loss
from ickd_pl.strategies.sdd import SDD, regions, sdd_loss
from tests.strategies.golden_methods import blank_batch, make_features
from tests.strategies.reference import s, t

LABEL = torch.tensor([0, 1, 2, 0])


def test_regions_are_means_of_ever_finer_cells() -> None:
    x = s(2, 3, 8, 8)
    found = regions(x, 4)
    assert found.shape == (21, 2, 3)
    torch.testing.assert_close(found[0], x.mean((2, 3)))
    torch.testing.assert_close(found[2], x[:, :, :4, 4:].mean((2, 3)))
    torch.testing.assert_close(found[-1], x[:, :, 6:, 6:].mean((2, 3)))
    assert regions(x, 2).shape == (5, 2, 3)


def test_regions_that_contradict_count_twice() -> None:
    """Image 0: right as a whole, wrong in region 1; image 1: the other way round; images 2 and 3 agree."""
    student, teacher = s(2, 4, 3), torch.zeros(2, 4, 3, dtype=torch.float64)
    for image, (whole, region) in enumerate(((0, 2), (0, 1), (2, 2), (1, 2))):
        teacher[0, image, whole] = teacher[1, image, region] = 3.0
    each = [[kd_loss(student[r, i : i + 1], teacher[r, i : i + 1]) for i in range(4)] for r in range(2)]
    expected = torch.stack(each[0]).sum() + (torch.stack(each[1]) * torch.tensor([2.0, 2.0, 1.0, 1.0])).sum()
    torch.testing.assert_close(sdd_loss(student, teacher, LABEL), expected / 8)


@pytest.mark.parametrize("base", ["kd", "dkd", "nkd"])
def test_both_last_layers_see_every_region(base: str) -> None:
    own, taught = s(3, 6).requires_grad_(), t(3, 5).requires_grad_()
    maps = s(4, 6, 4, 4).requires_grad_(), t(4, 5, 4, 4)
    student = replace(make_features(final=maps[0]), classifier=Classifier(own))
    teacher = replace(make_features(final=maps[1]), classifier=Classifier(taught.detach()))
    method = SDD(base=base, beta=3, temperature=2)  # type: ignore[arg-type]
    loss = method.loss(student, teacher, blank_batch(4)._replace(label=LABEL), None)
    loss.backward()
    assert own.grad is not None and own.grad.abs().sum() > 0
    assert maps[0].grad is not None and maps[0].grad.abs().sum() > 0
    logits = regions(maps[0], 2) @ own.T, regions(maps[1], 2) @ taught.T
    torch.testing.assert_close(loss, sdd_loss(*logits, LABEL, base, 2, 3))  # type: ignore[arg-type]


def test_one_region_is_the_base() -> None:
    one, other = s(1, 4, 3), t(1, 4, 3)
    torch.testing.assert_close(sdd_loss(one, other, LABEL), kd_loss(one[0], other[0]))
    torch.testing.assert_close(sdd_loss(one, other, LABEL, "dkd"), dkd_loss(one[0], other[0], LABEL))


def test_a_network_whose_last_layer_is_unknown() -> None:
    net = FeatureShapes("net", (5,), (4, 8, 8), ((4, 8, 8),), (4, 8, 8), (4,))
    with pytest.raises(IncompatiblePair, match="it applies the last layer of net, which does not say which that is"):
        SDD().check(net, net)


def test_warmup() -> None:
    sdd = SDD(weight=2, warmup_epochs=20)
    assert [sdd.weight_at(epoch) for epoch in (1, 2, 20, 21, None)] == [0.1, 0.2, 2, 2, 2]
    assert SDD().weight_at(1) == 0.9
