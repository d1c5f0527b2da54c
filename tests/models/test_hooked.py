"""Features of networks that are not the project's own."""

from __future__ import annotations

import copy
import dataclasses
import gc
import pickle
import weakref

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from ickd_pl.errors import UserError
from ickd_pl.models.features import FeatureShapes
from ickd_pl.models.hooked import HookedNet, LayerMap

STAGES = ("layer1", "layer2", "layer3", "layer4")
LAYERS = LayerMap(
    stem="relu",
    stages=STAGES,
    final="layer4",
    pooled="avgpool",
    preact=tuple(f"{stage}.1.relu:in" for stage in STAGES),
)


def resnet18() -> nn.Module:
    torch.manual_seed(0)
    net: nn.Module = torchvision.models.resnet18(weights=None, num_classes=10)
    return net


@pytest.fixture
def image() -> Tensor:
    return torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))


def test_features_of_resnet18(image: Tensor) -> None:
    expected = resnet18().eval()(image)
    net = HookedNet(resnet18(), LAYERS).eval()
    assert torch.equal(net(image), expected)
    out = net.features(image, preact=True)
    assert torch.equal(out.logits, expected)
    assert FeatureShapes.of("resnet18", out) == FeatureShapes(
        name="resnet18",
        logits=(10,),
        stem=(64, 32, 32),
        stages=((64, 16, 16), (128, 8, 8), (256, 4, 4), (512, 2, 2)),
        final=(512, 2, 2),
        pooled=(512,),
        preact=((64, 16, 16), (128, 8, 8), (256, 4, 4), (512, 2, 2)),
    )
    assert out.preact is not None
    for stage, before in zip(out.stages, out.preact, strict=True):
        assert before.min() < 0
        assert torch.equal(F.relu(before), stage)
    assert torch.allclose(out.pooled, out.final.mean((2, 3)))
    assert net.features(image).preact is None


def test_inplace_is_off_and_gradients_reach_the_taps(image: Tensor) -> None:
    net = HookedNet(resnet18(), dataclasses.replace(LAYERS, stem="bn1"))
    assert not any(getattr(module, "inplace", False) for module in net.modules())
    stem = net.features(image).stem
    assert stem.min() < 0, "the ReLU after it overwrote the tapped batch norm"
    stem.sum().backward()
    assert net.net.get_submodule("conv1").weight.grad is not None


def test_deepcopy_and_pickle_feed_their_own_copy(image: Tensor) -> None:
    net = HookedNet(resnet18(), LAYERS).eval()
    for other in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        with torch.no_grad():
            other.net.conv1.weight.zero_()
        assert other.features(image).stem.abs().max() == 0
        assert net.features(image).stem.abs().max() > 0


def test_state_dict_is_the_networks(image: Tensor) -> None:
    net, plain = HookedNet(resnet18(), LAYERS).eval(), resnet18()
    assert list(net.state_dict()) == [f"net.{key}" for key in plain.state_dict()]
    torch.manual_seed(1)
    other = HookedNet(torchvision.models.resnet18(weights=None, num_classes=10), LAYERS).eval()
    other.load_state_dict(net.state_dict())
    assert torch.equal(other(image), net(image))


def test_no_tensor_stays_alive(image: Tensor) -> None:
    net = HookedNet(resnet18(), LAYERS)
    stem = weakref.ref(net.features(image).stem)
    net(image)
    gc.collect()
    assert stem() is None
    assert all(tap.value is None for tap in net._taps.values())


def test_inference_mode(image: Tensor) -> None:
    net = HookedNet(resnet18(), LAYERS).eval()
    with torch.inference_mode():
        assert net.features(image).stem.shape == (2, 64, 32, 32)


def test_unknown_layer_names_near_ones() -> None:
    with pytest.raises(UserError, match=r"no layer 'layer5' in ResNet: did you mean .*layer4"):
        HookedNet(resnet18(), dataclasses.replace(LAYERS, final="layer5:in"))


def test_layer_that_does_not_run(image: Tensor) -> None:
    source = resnet18()
    source.add_module("unused", nn.Identity())
    net = HookedNet(source, dataclasses.replace(LAYERS, pooled="unused"))
    with pytest.raises(UserError, match="'unused' did not run"):
        net.features(image)
    assert all(tap.value is None and not tap.armed for tap in net._taps.values())


def test_overwritten_tap_is_an_error(image: Tensor) -> None:
    net = HookedNet(resnet18(), dataclasses.replace(LAYERS, final="layer4.1.bn2"))
    with pytest.raises(UserError, match=r"'layer4\.1\.bn2'.* in place"):
        net.features(image)


class Pair(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, x


def test_only_tensors_can_be_tapped(image: Tensor) -> None:
    source = resnet18()
    source.add_module("bn1", nn.Sequential(source.get_submodule("bn1"), Pair(), _First()))
    net = HookedNet(source, dataclasses.replace(LAYERS, stem="bn1.1"))
    with pytest.raises(UserError, match=r"'bn1\.1'.*tuple"):
        net.features(image)


class _First(nn.Module):
    def forward(self, pair: tuple[Tensor, Tensor]) -> Tensor:
        return pair[0]


def test_preact_must_be_named(image: Tensor) -> None:
    net = HookedNet(resnet18(), dataclasses.replace(LAYERS, preact=None))
    with pytest.raises(UserError, match="set preact in the LayerMap"):
        net.features(image, preact=True)
    with pytest.raises(UserError, match="4 stages but 1 preact"):
        HookedNet(resnet18(), dataclasses.replace(LAYERS, preact=("layer1",)))
