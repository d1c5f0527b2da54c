"""A trained student and the configuration to use it: its network, its classes, and how its images are normalised."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ickd_pl.checks import short
from ickd_pl.errors import UserError
from ickd_pl.models import get_model, model_names
from ickd_pl.models.base import FeatureNet
from ickd_pl.models.deployed import DeployedNet, head_from
from ickd_pl.seeding import seeded
from ickd_pl.version import __version__
from ickd_pl.weights.checkpoint import RunCheckpoint, checkpoint_of, is_checkpoint
from ickd_pl.weights.normalization import fault_of, three_numbers
from ickd_pl.weights.read import load_weights, read_file, weights_file
from ickd_pl.weights.stated import KEY, metadata, stated_head


@dataclass(frozen=True)
class StudentConfig:
    """What is stored with a student's weights.

    Attributes:
        network: its name for ``get_model``; None for the user's own network.
        num_classes: K.
        image_size: height and width in pixels.
        mean: per channel, of pixels scaled to 0..1; None if unknown.
        std: likewise.
        class_names: one for each class, in the order of the logits; None if unknown.
        head: class and arguments of the head by which the student predicts (see
            :func:`ickd_pl.models.deployed.head_from`); None for its own last layer.

    Raises:
        UserError: a value of the wrong type or length.
    """

    network: str | None
    num_classes: int
    image_size: int = 32
    mean: list[float] | None = None
    std: list[float] | None = None
    class_names: list[str] | None = None
    head: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        if self.network is not None and self.network not in model_names():
            raise UserError(f"network: expected a name of ickd_pl.model_names(), got {self.network!r}")
        # A damaged file must not make torch allocate all memory.
        for name, size, most in (("num_classes", self.num_classes, 10**6), ("image_size", self.image_size, 4096)):
            if not isinstance(size, int) or isinstance(size, bool) or not 1 <= size <= most:
                raise UserError(f"{name}: expected a whole number from 1 to {most}, got {size!r}")
        for name, values in (("mean", self.mean), ("std", self.std)):
            numbers = three_numbers(values) if isinstance(values, list) else None
            if values is not None and (numbers is None or (name == "std" and min(numbers) <= 0)):
                what = "three numbers above 0" if name == "std" else "three numbers"
                raise UserError(f"{name}: expected {what}, one per channel, got {short(values)}")
        names = self.class_names
        if names is not None and not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
            raise UserError(f"class_names: expected a list of strings, got {type(names).__name__}")
        if names is not None and len(names) != self.num_classes:
            raise UserError(f"class_names: expected {self.num_classes}, one per class, got {len(names)}")
        if self.head is not None:
            head_from(self.head)

    def as_dict(self) -> dict[str, Any]:
        """Plain data for a file, with a description of input and output."""
        return {
            **asdict(self),
            "input": "image: float32 (B, 3, image_size, image_size), RGB, (pixels / 255 - mean) / std per channel",
            "output": "logits: float32 (B, num_classes)",
            "ickd_pl": __version__,
        }

    def as_json(self) -> str:
        return json.dumps(self.as_dict())


def load_student(path: str | Path) -> FeatureNet:
    """A trained student in eval mode.

    Args:
        path: a checkpoint written by ``fit`` (``.../checkpoints/last.ckpt``), or its export as ``.safetensors`` or
            RepDistiller's ``.pth``. ``FILE#ENTRY`` takes the weights under another name in it, such as their average.

    Raises:
        UserError: the file is missing, damaged or of another kind, or its network is the user's own.
    """
    config = read_config(path)
    if config.network is None:
        raise UserError(
            f"{path} holds a custom network, which has no name in ickd_pl: build it in Python, then read its weights "
            "with ickd_pl.weights.load_weights(net, path, name)"
        )
    with seeded("load_student"):
        net = get_model(config.network, config.num_classes)
        if config.head is not None:
            net = DeployedNet(net, config.head)
    load_weights(net, path, config.network)
    return net.eval()


def read_config(path: str | Path) -> StudentConfig:
    """The student's configuration in a checkpoint of ``fit``, or in a ``.safetensors`` or ``.pth`` of ``export``.

    Raises:
        UserError: as :func:`load_student`.
    """
    path = weights_file(path)
    if path.suffix in (".onnx", ".pt2"):
        reader = "onnxruntime.InferenceSession" if path.suffix == ".onnx" else "torch.export.load"
        raise UserError(f"{path} holds a whole program: read it with {reader}, or give the checkpoint it was made from")
    content = read_file(path)
    try:
        if is_checkpoint(content):
            return _of_checkpoint(checkpoint_of(path, content))
        config = metadata(path) if path.suffix == ".safetensors" else content.get(KEY)
        if isinstance(config, dict) and "network" in config:
            values: dict[str, Any] = {name: config.get(name) for name in StudentConfig.__dataclass_fields__}
            return StudentConfig(**values)
    except UserError as error:
        if str(error).startswith(str(path)):
            raise
        raise UserError(f"{path}: its configuration is damaged ({error}): get it again") from error
    raise UserError(
        f"{path} is not a checkpoint of ickd_pl or a student exported from one: give the checkpoints/last.ckpt of a "
        "run, or read other weights with load_teacher"
    )


def normalisation_of(
    path: str | Path, setting: str = "model.teacher_normalization"
) -> tuple[list[float], list[float]] | None:
    """Mean and std with which the images of a network were normalised, as its weights file says; None: it does not.

    Args:
        path: a checkpoint of ``fit``, an export or another weights file, or ``FILE#ENTRY``.
        setting: name of the setting that says them otherwise, for an error.

    Raises:
        UserError: the file is missing or damaged, or what it says is not a mean and a std of pixels scaled to 0..1.
    """
    path = weights_file(path)
    content = read_file(path)
    stated: Any
    if is_checkpoint(content):
        stated = checkpoint_of(path, content).data_state
    elif path.suffix == ".safetensors":
        stated = metadata(path)
    else:
        stated = content.get(KEY) if isinstance(content, Mapping) else None
    mean, std = (stated.get(name) for name in ("mean", "std")) if isinstance(stated, Mapping) else (None, None)
    if mean is None or std is None:
        return None
    found_mean, found_std = three_numbers(mean), three_numbers(std)
    if found_mean is None or found_std is None:
        raise UserError(
            f"{path}: its mean or std is damaged, three numbers are expected: get it again, or set {setting}"
        )
    if fault := fault_of(found_mean, found_std):
        raise UserError(
            f"{path}: its mean {short(found_mean)} and std {short(found_std)} cannot be used ({fault}): set {setting}"
        )
    return found_mean, found_std


def _of_checkpoint(checkpoint: RunCheckpoint) -> StudentConfig:
    settings, kept = checkpoint.settings, checkpoint.data_state
    head = stated_head(checkpoint.path, checkpoint.content)
    return StudentConfig(
        network=settings.get("student"),
        num_classes=settings.get("num_classes", 100),
        image_size=settings.get("image_size", 32),
        mean=kept.get("mean"),
        std=kept.get("std"),
        class_names=kept.get("class_names"),
        head=None if head is None else head.spec,
    )


def described(net: object) -> tuple[str | None, dict[str, Any] | None]:
    """A network's registered name, None for the user's own; and the head by which it predicts, if there is one."""
    inner, head = (net.net, net.head.spec()) if isinstance(net, DeployedNet) else (net, None)
    return (inner.name if isinstance(inner, FeatureNet) and inner.name in model_names() else None), head
