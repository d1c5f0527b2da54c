"""What every network offers: shapes, features before the ReLU, starts, recorded logits."""

from __future__ import annotations

import copy
import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ickd_pl.models import FeatureNet, get_model, model_names
from ickd_pl.models.features import FeatureShapes
from ickd_pl.seeding import seeded
from tests.fill_rule import fill

Maps = tuple[tuple[int, int], ...]  # channels and side of the stem, the stages and the final map

RESNET: Maps = ((16, 32), (16, 32), (32, 16), (64, 8), (64, 8))
RESNET_X4: Maps = ((32, 32), (64, 32), (128, 16), (256, 8), (256, 8))
VGG: Maps = ((64, 32), (128, 16), (256, 8), (512, 4), (512, 4), (512, 4))
# By a pattern of names.
MAPS: dict[str, Maps] = {
    r"resnet\d+": RESNET,
    r"resnet\d+x4": RESNET_X4,
    r"wrn_\d+_1": RESNET,
    r"wrn_\d+_2": ((16, 32), (32, 32), (64, 16), (128, 8), (128, 8)),
    r"vgg\d+": VGG,
    "ResNet50": ((64, 32), (256, 32), (512, 16), (1024, 8), (2048, 4), (2048, 4)),
    "MobileNetV2": ((16, 16), (12, 16), (16, 8), (48, 4), (160, 2), (1280, 2)),
    "ShuffleV1": ((24, 32), (240, 16), (480, 8), (960, 4), (960, 4)),
    "ShuffleV2": ((24, 32), (116, 16), (232, 8), (464, 4), (1024, 4)),
}
# One network of each class.
FAMILIES = ["resnet8", "wrn_16_2", "vgg8", "ResNet50", "MobileNetV2", "ShuffleV1", "ShuffleV2"]
REFERENCE = json.loads((Path(__file__).parent / "reference_logits.json").read_text())


def network(name: str, num_classes: int = 100) -> FeatureNet:
    with seeded("tests", name):
        return get_model(name, num_classes)


def images(batch: int = 2, size: int = 32) -> Tensor:
    return torch.as_tensor(np.random.default_rng(0).standard_normal((batch, 3, size, size))).float()


@pytest.mark.parametrize("name", model_names())
def test_shapes(name: str) -> None:
    with torch.device("meta"):
        net, image = get_model(name, 10), torch.empty(2, 3, 32, 32)
        shapes = FeatureShapes.of(name, net.features(image, preact=True))
    known = [maps for pattern, maps in MAPS.items() if re.fullmatch(pattern, name)]
    found = tuple(shape[:2] for shape in (shapes.stem, *shapes.stages, shapes.final))
    assert known, f"a new network: add its maps to MAPS in tests/models/test_networks.py, if they are right: {found}"
    stem, *stages, final = ((channels, side, side) for channels, side in known[0])
    expected = FeatureShapes(name, (10,), stem, tuple(stages), final, (final[0],), tuple(stages), (10, final[0]))
    assert shapes == expected


def test_every_class_has_a_network_among_the_families() -> None:
    with torch.device("meta"):
        classes = {name: type(get_model(name)) for name in model_names()}
    missing = {name for name, cls in classes.items() if cls not in {classes[family] for family in FAMILIES}}
    assert not missing, f"a new class: add one of its networks to FAMILIES in tests/models/test_networks.py: {missing}"


@pytest.mark.parametrize("name", FAMILIES)
def test_features_before_the_relu(name: str) -> None:
    net, image = network(name).eval(), images()
    with torch.no_grad():
        plain, out = net.features(image), net.features(image, preact=True)
        assert torch.equal(net(image), out.logits)
    assert plain.preact is None
    assert out.preact is not None
    for a, b in zip(plain.stages, out.stages, strict=True):
        assert torch.equal(a, b)
    assert all(before.min() < 0 for before in out.preact)
    if name == "MobileNetV2":
        assert all(a is b for a, b in zip(out.preact, out.stages, strict=True))
    elif name == "wrn_16_2":
        assert torch.equal(F.relu(out.preact[-1]), out.final)
    elif name != "ShuffleV2":
        assert all(torch.equal(F.relu(a), b) for a, b in zip(out.preact, out.stages, strict=True))


@pytest.mark.parametrize("name", FAMILIES)
def test_every_batch_norm_runs_once(name: str) -> None:
    net = network(name)
    again = copy.deepcopy(net)
    with torch.no_grad():
        net.features(images(), preact=True)
        again(images())
    state = again.state_dict()
    for key, value in net.state_dict().items():
        assert torch.equal(value, state[key]), key
        assert not key.endswith("num_batches_tracked") or int(value) == 1, key


@pytest.mark.parametrize("name", FAMILIES)
def test_gradients_of_every_feature(name: str) -> None:
    """No in-place operation spoils a feature, and the first-stage modules are those before the classifier."""
    net = network(name)
    out = net.features(images(), preact=True)
    assert out.preact is not None
    loss = sum((t.square().mean() for t in (out.stem, *out.stages, *out.preact)), out.logits.mean())
    torch.as_tensor(loss).backward()
    assert all(p.grad is not None for p in net.parameters())
    trained = {id(p) for module in net.feat_modules() for p in module.parameters()}
    last = next(reversed(dict(net.named_parameters()).values()))
    assert id(last) not in trained
    assert id(next(net.parameters())) in trained


@pytest.mark.parametrize("name", ["resnet8", "wrn_16_2", "vgg8", "MobileNetV2", "ShuffleV1", "ShuffleV2"])
def test_other_sizes(name: str) -> None:
    with torch.device("meta"):
        out = get_model(name, 10).features(torch.empty(2, 3, 64, 64))
    assert out.logits.shape == (2, 10)
    if name == "vgg8":
        assert out.final.shape == (2, 512, 4, 4)


@pytest.mark.parametrize("name", FAMILIES)
def test_one_graph(name: str) -> None:
    """The networks trace without a graph break."""
    net = network(name).eval()
    with torch.no_grad():
        traced = torch.compile(net.features, backend="eager", fullgraph=True)(images(), preact=True)
        assert torch.equal(traced.logits, net(images()))


@pytest.mark.parametrize("name", FAMILIES)
def test_start(name: str) -> None:
    """Spread of the starting weights: fan-out normal for convolutions, except PyTorch's default in ShuffleNets."""
    net = network(name)
    for key, module in net.named_modules():
        if isinstance(module, nn.Conv2d):
            weight = module.weight
            fan = weight.shape[0] * weight[0, 0].numel()
            std = math.sqrt(1 / (3 * weight[0].numel())) if name.startswith("Shuffle") else math.sqrt(2 / fan)
            assert float(weight.detach().std()) == pytest.approx(std, rel=4 / math.sqrt(weight.numel())), (
                f"{key}: a network that starts from another spread is named here"
            )
            assert module.bias is None or not module.bias.any()
        elif isinstance(module, nn.BatchNorm2d):
            assert bool((module.weight == 1).all())
            assert not module.bias.any()
        elif isinstance(module, nn.Linear):
            normal = name in {"vgg8", "MobileNetV2"}
            std = 0.01 if normal else math.sqrt(1 / (3 * module.in_features))
            assert float(module.weight.detach().std()) == pytest.approx(std, rel=0.05)
            assert bool(module.bias.any()) != (normal or name == "wrn_16_2")


@pytest.mark.parametrize("name", REFERENCE)
def test_recorded_logits(name: str) -> None:
    """First logits under the fill rule, recorded when the network agreed with the original code's numbers."""
    net = get_model(name).double()
    net.load_state_dict(fill(net.state_dict(), fan_in=True))
    with torch.no_grad():
        logits = net.eval()(images(1).double())
    assert logits.flatten()[:8].tolist() == pytest.approx(REFERENCE[name], rel=1e-8)
