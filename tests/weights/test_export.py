"""Exported files reproduce the network's logits, with and without this project."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from ickd_pl import HookedNet, LayerMap, UserError, get_model, load_student, load_teacher
from ickd_pl.models.base import FeatureNet
from ickd_pl.seeding import seeded
from ickd_pl.weights import StudentConfig, export_student, load_weights, read_config
from ickd_pl.weights.export import write_student
from ickd_pl.weights.formats import FORMATS

BATCH_SIZES = (1, 7)
KNOWN = {"mean": [0.5, 0.25, 0.125], "std": [0.3, 0.2, 0.1], "class_names": [f"class {i}" for i in range(10)]}

# Run in processes without this project and, for ONNX, without torch.
ONNX_READER = """
import sys
sys.modules["ickd_pl"] = sys.modules["torch"] = None
import numpy as np, onnxruntime
images = np.load("images.npy")
for path in sys.argv[1:]:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    print(session.get_modelmeta().custom_metadata_map["config"])
    for size in (1, 7):
        batches = [images[i:i + size] for i in range(0, len(images), size)]
        np.save(f"{path}.{size}.npy", np.concatenate([session.run(None, {"image": b})[0] for b in batches]))
"""
TORCH_READER = """
import sys
sys.modules["ickd_pl"] = None
import numpy as np, torch
images = torch.from_numpy(np.load("images.npy"))
for path in sys.argv[1:]:
    extra = {"config.json": ""}
    program = torch.export.load(path, extra_files=extra).module()
    print(extra["config.json"])
    for size in (1, 7):
        np.save(f"{path}.{size}.npy", torch.cat([program(b) for b in images.split(size)]).detach().numpy())
"""
WEIGHTS_READER = """
import sys
sys.modules["ickd_pl"] = None
import json, torch
from safetensors import safe_open
reference = torch.load("reference.pth", weights_only=True)
with safe_open("net.safetensors", "pt") as file:
    print(file.metadata()["config"])
    one = {key: file.get_tensor(key) for key in file.keys()}
content = torch.load("net.pth", weights_only=True)
print(json.dumps(content.pop("config")))
assert list(content) == ["epoch", "model", "best_acc"], list(content)
for weights in (one, content["model"]):
    assert weights.keys() == reference.keys()
    assert all(weights[key].dtype == reference[key].dtype for key in reference)
    assert all(torch.equal(weights[key], reference[key]) for key in reference)
"""


def network(name: str, num_classes: int = 10) -> FeatureNet:
    """A network in training mode with batch norm statistics, as a trained one has."""
    with seeded("test", name), torch.no_grad():
        net = get_model(name, num_classes).train()
        for _ in range(3):
            net(torch.randn(16, 3, 32, 32))
    return net


def sixty_four_images() -> Tensor:
    images = torch.randn(64, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    np.save("images.npy", images.numpy())
    return images


def logits(net: nn.Module, images: Tensor, size: int) -> Tensor:
    net.eval()
    with torch.no_grad():
        return torch.cat([net(batch) for batch in images.split(size)])


def read_elsewhere(script: str, *paths: str) -> list[dict[str, Any]]:
    """Run a reader script; returns the configurations that it prints, one per file."""
    done = subprocess.run([sys.executable, "-c", script, *paths], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.parametrize(
    ("format", "suffix", "reader", "names"),
    [
        ("onnx", "onnx", ONNX_READER, ["wrn_16_1", "vgg8", "ShuffleV1", "MobileNetV2"]),
        ("torch_export", "pt2", TORCH_READER, ["resnet8", "vgg8"]),
    ],
)
@pytest.mark.slow
def test_programs_give_the_logits_without_this_project(format: str, suffix: str, reader: str, names: list[str]) -> None:
    images = sixty_four_images()
    nets = {f"{name}.{suffix}": network(name) for name in names}
    for path, net in nets.items():
        done = export_student(net, path, format, **KNOWN)
        assert done.verified
        assert done.size == Path(path).stat().st_size
        assert net.training
        assert all(parameter.requires_grad for parameter in net.parameters())
    configs = read_elsewhere(reader, *nets)
    for (path, net), config in zip(nets.items(), configs, strict=True):
        assert {name: config[name] for name in KNOWN} == KNOWN
        assert (config["network"], config["num_classes"], config["image_size"]) == (net.name, 10, 32)
        for size in BATCH_SIZES:
            got = torch.from_numpy(np.load(f"{path}.{size}.npy"))
            assert (got - logits(net, images, size)).abs().max() < 1e-5, (path, size)
        # No paths of this machine.
        assert str(Path(__file__).parents[2]).encode() not in Path(path).read_bytes()


def test_weights_are_read_without_this_project() -> None:
    net = network("ShuffleV2")
    for path, format in (("net.safetensors", "safetensors"), ("net.pth", "repdistiller")):
        assert export_student(net, path, format, **KNOWN).verified
    torch.save(net.state_dict(), "reference.pth")
    for config in read_elsewhere(WEIGHTS_READER):
        assert {name: config[name] for name in KNOWN} == KNOWN
        assert config["network"] == "ShuffleV2"


@pytest.mark.parametrize("path", ["net.safetensors", "net.pth"])
def test_weights_are_read_by_one_line(path: str) -> None:
    images, net = sixty_four_images(), network("wrn_16_1")
    export_student(net, path, "safetensors" if path.endswith("safetensors") else "repdistiller", **KNOWN)
    assert read_config(path) == StudentConfig("wrn_16_1", 10, 32, **KNOWN)
    for read in (load_student(path), load_teacher("wrn_16_1", path, 10)):
        assert not any(module.training for module in read.modules())
        for size in BATCH_SIZES:
            assert torch.equal(logits(read, images, size), logits(net, images, size))


def test_writing_and_reading_leave_the_random_state_unchanged() -> None:
    net = network("resnet8")
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    export_student(net, "net.safetensors", "safetensors")
    load_student("net.safetensors")
    assert torch.equal(torch.rand(1), expected)


# -- custom networks ---------------------------------------------------------------------------------------------------


class Own(nn.Module):
    """A network with batch norm and dropout, whose input is not called image."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, stride=2)
        self.norm = nn.BatchNorm2d(4)
        self.fc = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(x)).relu().mean(dim=(2, 3))
        out: Tensor = self.fc(nn.functional.dropout(x, training=self.training))
        return out


@pytest.mark.parametrize("format", list(FORMATS))
@pytest.mark.parametrize("hooked", [False, True])
def test_any_network(format: str, hooked: bool) -> None:
    own = Own()
    net = (
        HookedNet(own, LayerMap(stem="conv", stages=("conv", "norm"), final="norm", pooled="fc:in")) if hooked else own
    )
    path = f"own{FORMATS[format].suffix}"
    assert export_student(net, path, format, image_size=20).verified
    if format in ("safetensors", "repdistiller"):
        assert read_config(path) == StudentConfig(None, 5, 20)
        with pytest.raises(UserError, match=r"own\..* holds a custom network.*load_weights"):
            load_student(path)
        other = Own()
        load_weights(other, path, "Own")
        assert all(torch.equal(value, own.state_dict()[key]) for key, value in other.state_dict().items())


class Branching(Own):
    """Data-dependent control flow, which cannot be exported as a graph."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if x.sum() >= 0 else super().forward(-x)


@pytest.mark.parametrize("format", ["onnx", "torch_export"])
def test_a_network_that_cannot_be_a_graph(format: str) -> None:
    with pytest.raises(UserError, match=rf"Branching cannot be exported as {format} \(torch \d") as caught:
        export_student(Branching(), f"new/own{FORMATS[format].suffix}", format)
    assert "\n" not in str(caught.value)
    assert not list(Path().iterdir())


# -- mistakes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "needle"),
    [
        ({"mean": [0.5]}, r"mean: expected three numbers, one per channel, got \[0\.5\]"),
        ({"std": [0.5, 0.5, 0.0]}, "std: expected three numbers above 0"),
        ({"mean": [0.5, 0.5, float("nan")]}, "mean: expected three numbers"),
        ({"class_names": ["a"]}, "class_names: expected 10, one per class, got 1"),
        ({"class_names": list(range(10))}, "class_names: expected a list of strings"),
        ({"image_size": 0}, "3x0x0"),
        ({"format": "safetensor"}, r"unknown format safetensor: did you mean safetensors\?"),
        ({"path": "new/net.pth"}, r"net\.pth: a file of the format safetensors ends in \.safetensors"),
    ],
)
def test_wrong_arguments(arguments: dict[str, Any], needle: str) -> None:
    with pytest.raises(UserError, match=needle):
        export_student(
            get_model("resnet8", 10), **{"path": "new/net.safetensors", "format": "safetensors", **arguments}
        )
    assert not list(Path().iterdir())


def test_no_classifier_and_nan_weights() -> None:
    with pytest.raises(UserError, match=r"Conv2d gives \(2, 4, 30, 30\) for two images: expected logits"):
        export_student(nn.Conv2d(3, 4, 3), "net.onnx", "onnx")
    net = get_model("resnet8", 10)
    nn.init.constant_(net.fc.bias, float("nan"))
    with pytest.raises(UserError, match=r"NaN or infinite weights \(fc\.bias\)"):
        export_student(net, "net.onnx", "onnx")
    assert not list(Path().iterdir())


@pytest.mark.parametrize("off", [1e-4, float("nan")])
def test_a_file_that_reads_back_differently_is_not_kept(monkeypatch: pytest.MonkeyPatch, off: float) -> None:
    how = FORMATS["safetensors"]

    def wrong(content: bytes, net: nn.Module) -> Any:
        run = how.read(content, net)
        assert run is not None
        return lambda images: run(images) + off

    monkeypatch.setitem(FORMATS, "safetensors", dataclasses.replace(how, read=wrong))
    with pytest.raises(UserError, match=r"net\.safetensors was not written: read back, its logits are off by"):
        export_student(get_model("resnet8", 10), "new/net.safetensors", "safetensors")
    assert not list(Path().iterdir())


def test_lost_weights_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The verification must not reuse weights of the original network."""
    how = FORMATS["safetensors"]

    def lossy(net: nn.Module, *rest: Any) -> bytes:
        other = get_model("resnet8", 10).eval()
        return how.write(other, *rest)

    monkeypatch.setitem(FORMATS, "safetensors", dataclasses.replace(how, write=lossy))
    with pytest.raises(UserError, match="its logits are off by"):
        write_student(network("resnet8"), Path("net.safetensors"), "safetensors", StudentConfig("resnet8", 10))


@pytest.mark.parametrize(
    ("config", "needle"),
    [
        ("{", "expected JSON"),
        ("[]", r"net\.safetensors is not a checkpoint of ickd_pl or a student exported from one"),
        ('{"network": "resnet9", "num_classes": 10, "image_size": 32}', "'resnet9'"),
        ('{"network": ["resnet8"], "num_classes": 10, "image_size": 32}', "resnet8"),
        ('{"network": "resnet8", "image_size": 32}', "num_classes: expected a whole number"),
        ('{"network": "resnet8", "num_classes": 1000000000000, "image_size": 32}', "num_classes"),
        ('{"network": "resnet8", "num_classes": true, "image_size": 32}', "num_classes"),
        ('{"network": "resnet8", "num_classes": 10, "image_size": 32, "mean": 1}', "mean"),
        ('{"network": "resnet8", "num_classes": 10, "image_size": 32, "std": ["a", 1, 1]}', "std"),
        ('{"network": "resnet8", "num_classes": 11, "image_size": 32}', "number of classes"),
        ('{"network": "resnet14", "num_classes": 10, "image_size": 32}', "does not fit resnet14"),
        (None, "is not a checkpoint of ickd_pl"),
    ],
)
def test_a_damaged_configuration(config: str | None, needle: str) -> None:
    net = get_model("resnet8", 10)
    save_file(net.state_dict(), "net.safetensors", None if config is None else {"config": config})
    with pytest.raises(UserError, match=needle) as caught:
        load_student("net.safetensors")
    assert "net.safetensors" in str(caught.value)


def test_exported_programs_are_not_weights() -> None:
    for path, reader in (("net.onnx", "onnxruntime"), ("net.pt2", r"torch\.export\.load")):
        Path(path).write_bytes(b"anything")
        with pytest.raises(UserError, match=rf"{path} holds a whole program: read it with {reader}"):
            load_student(path)
