"""Folded batch norms give the same features, and what cannot be folded is left."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import pytest
import torch
import torchvision
from torch import Tensor, nn

from ickd_pl import get_model
from ickd_pl.models import FeatureNet, fold, model_names
from ickd_pl.models.features import Features
from ickd_pl.models.fold import fold_batch_norms
from ickd_pl.models.hooked import HookedNet, LayerMap
from ickd_pl.models.resnet import ResNet
from ickd_pl.seeding import generator

LAYERS = LayerMap(stem="relu", stages=("layer1", "layer2", "layer3", "layer4"), final="layer4", pooled="avgpool")


def with_statistics(net: nn.Module) -> nn.Module:
    """In float64 and eval mode, with other statistics and scales than those of a new network."""
    draws = generator("statistics")
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor, low in ((module.running_mean, -0.2), (module.running_var, 0.5), (module.weight.data, 0.5)):
                assert tensor is not None
                tensor.uniform_(low, low + 0.7, generator=draws)
            module.bias.data.uniform_(-0.2, 0.2, generator=draws)
    return net.double().eval()


def norms(net: nn.Module) -> int:
    return sum(isinstance(module, nn.BatchNorm2d) for module in net.modules())


def tensors(features: Features) -> Iterator[Tensor]:
    yield from (features.logits, features.stem, *features.stages, features.final, features.pooled)
    yield from features.preact or ()


@torch.no_grad()
def assert_same(one: FeatureNet | HookedNet, other: FeatureNet | HookedNet, preact: bool = True) -> None:
    image = torch.randn(3, 3, 32, 32, dtype=torch.float64, generator=generator("image"))
    for a, b in zip(tensors(one.features(image, preact)), tensors(other.features(image, preact)), strict=True):
        torch.testing.assert_close(b, a, rtol=1e-10, atol=1e-10 * float(a.abs().max()))


@pytest.mark.parametrize("name", [name for name in model_names() if name not in ("ResNet50", "vgg19", "resnet110")])
def test_the_networks_of_the_package(name: str) -> None:
    net = with_statistics(get_model(name, 10))
    assert isinstance(net, FeatureNet)
    before = copy.deepcopy(net.state_dict())
    folded = fold_batch_norms(net, 32)
    assert folded is not None and folded is not net
    # A wrn's block begins with batch norms, of sums that are features.
    assert norms(folded) == (norms(net) - (norms(net) - 1) // 2 if name.startswith("wrn") else 0)
    assert_same(net, folded)
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())


def test_a_network_with_hooks() -> None:
    """The first batch norm's output is a feature, read by a hook, and the last stage's second convolution is one."""
    stages = ("layer1", "layer2", "layer3", "layer4.1.conv2")
    layers = LayerMap(stem="bn1", stages=stages, final="layer4", pooled="avgpool")
    net = HookedNet(torchvision.models.resnet18(weights=None, num_classes=10), layers)
    with_statistics(net)
    folded = fold_batch_norms(net, 32)
    assert folded is not None and norms(folded) == 1 and norms(net) == 20
    assert_same(net, folded, preact=False)


class Shared(ResNet):
    """A block whose first convolution also feeds something else than its batch norm."""

    def features(self, image: Tensor, preact: bool = False) -> Features:
        block = self.layer1[0]
        x = self.conv1(image)
        found = super().features(image, preact)
        extra = block.bn1(block.conv1(x)) + x.mean()
        return Features(found.logits + extra.mean(), x + 0, found.stages, found.final, found.pooled, found.preact)


def test_what_runs_twice_or_is_read_elsewhere_is_not_folded() -> None:
    net = with_statistics(Shared(1, (16, 16, 32, 64), 10))
    assert isinstance(net, Shared)
    folded = fold_batch_norms(net, 32)
    assert folded is not None and norms(folded) == 2  # bn1 and the first block's bn1
    assert_same(net, folded)


class Reads(nn.Module):
    """The convolution's output goes through its batch norm, and past it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn, self.pool = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(4, 10)

    def forward(self, image: Tensor) -> Tensor:
        x = self.conv(image)
        logits: Tensor = self.fc(self.pool(self.bn(x) + x).flatten(1))
        return logits


def test_a_convolution_with_a_second_reader() -> None:
    net = HookedNet(Reads(), LayerMap(stem="bn", stages=("bn",), final="bn", pooled="pool"))
    with_statistics(net)
    assert fold_batch_norms(net, 32) is net


def test_whether_a_copy_computes_alike_is_seen_in_real_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run's TF32 made the difference too large, so that teachers were never folded on a GPU."""
    seen = []
    features = fold._features

    def looked(net: FeatureNet, image: Tensor) -> Features:
        seen.append((torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32))
        return features(net, image)

    monkeypatch.setattr(fold, "_features", looked)
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = True
    try:
        assert fold_batch_norms(get_model("resnet8", 10).eval(), 32) is not None
        assert torch.backends.cudnn.allow_tf32 and torch.backends.cuda.matmul.allow_tf32
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before
    assert seen and set(seen) == {(False, False)}


def test_a_copy_that_computes_otherwise_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    net = get_model("resnet8", 10).eval()
    monkeypatch.setattr(fold, "_fold", lambda layer, norm: setattr(norm, "__class__", nn.Identity))
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.constant_(module.bias, 0.5)
    assert fold_batch_norms(net, 32) is None
    assert fold_batch_norms(net.bfloat16(), 32) is net


class Particular(nn.Module):
    """A network that works as it is, but not as a copy (``hook``) or with its channels last (others)."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.kept = how, {}  # type: ignore[var-annotated]
        self.a, self.norm, self.fc = nn.Conv2d(3, 4, 3, 2, 1), nn.BatchNorm2d(4), nn.Linear(1024, 10)
        if how == "hook":
            self.a.register_forward_hook(lambda module, given, out: self.kept.update(x=out))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.norm(self.a(x)).relu()
        if self.how == "hook":
            out = out + 0 * self.kept.pop("x")
        by_stride = self.how == "memory"
        flat = torch.as_strided(out, (len(out), 1024), (1024, 1)) if by_stride else out.view(len(out), -1)
        logits: Tensor = self.fc(flat)
        return logits


@pytest.mark.parametrize("how", ["hook", "view", "memory"])
def test_a_copy_that_fails_or_a_layout_that_changes_it_is_not_used(how: str) -> None:
    layers = LayerMap(stem="norm", stages=("norm", "norm"), final="norm", pooled="fc:in")
    net = HookedNet(with_statistics(Particular(how)), layers)
    assert fold_batch_norms(net, 32, torch.channels_last) is None
    folded = fold_batch_norms(net, 32)
    assert (folded is None) == (how == "hook")
