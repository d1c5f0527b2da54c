"""What the scripts of this folder share: shipped configurations, modules built from them, random images, waiting."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Any

import torch
import yaml
from torch import Tensor, nn

from ickd_pl import DistillationModule, get_model
from ickd_pl.models import FeatureNet
from ickd_pl.runs.configs import config_root
from ickd_pl.seeding import generator, seeded
from ickd_pl.strategies import from_spec
from ickd_pl.strategies.components.negatives import ClassTable

CLASSES = 100
# The table's one-stage rows, which can be packed: all but FSP.
ROWS = ("vanilla", "kd", "fitnet", "at", "sp", "cc", "vid", "rkd", "pkt", "nst", "ickd", "ickd_kl")


def shipped(kind: str) -> list[str]:
    """Names of the shipped configurations of a kind, such as ``pairs``."""
    return sorted(path.stem for path in (config_root() / kind).glob("*.yaml"))


def model_settings(kind: str, name: str) -> dict[str, Any]:
    """The ``model`` part of a shipped configuration."""
    content: dict[str, Any] = yaml.safe_load((config_root() / kind / f"{name}.yaml").read_text(encoding="utf-8"))
    return dict(content["model"])


@functools.cache
def random_images(count: int) -> tuple[Tensor, Tensor]:
    """Pixels, (count, 3, 32, 32) uint8, and labels, (count,) int64, of which every class has as many."""
    pixels = torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8, generator=generator("benchmarks", "images"))
    return pixels, torch.arange(count) % CLASSES


def untrained_teacher(name: str, image: Tensor | None = None) -> FeatureNet:
    """A frozen network whose batch norms know the images: without that a deep one's maps grow beyond float32.

    Args:
        name: of the network.
        image: (B, 3, 32, 32), normalised; None: random ones.
    """
    if image is None:
        image = torch.randn(8, 3, 32, 32, generator=generator("benchmarks", "teacher"))
    with seeded("benchmarks", name):
        net = get_model(name, CLASSES)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        net.train()(image)
    return net.eval().requires_grad_(False)


def fill_class_tables(module: nn.Module, labels: Tensor) -> None:
    """Tell the methods that draw by class the labels of the training images, (N,): in a fit the data module does."""
    for part in module.modules():
        if isinstance(part, ClassTable):
            part.fill(labels)


def build(pair: str, method: str, teacher: nn.Module | None = None, **arguments: Any) -> DistillationModule:
    """The module of a shipped pair and method, in training mode.

    Args:
        pair: as in ``configs/pairs``.
        method: as in ``configs/methods``.
        teacher: None: an untrained one of its own, unless the method needs none.
        arguments: of :class:`ickd_pl.DistillationModule`; with ``num_samples`` every class gets as many images.
    """
    networks, settings = model_settings("pairs", pair), model_settings("methods", method)
    specs = [spec if isinstance(spec, dict) else {"class_path": spec} for spec in settings["strategies"]]
    if specs and teacher is None:
        teacher = untrained_teacher(networks["teacher"])
    module = DistillationModule(
        networks["student"],
        teacher if specs else None,
        strategies=[from_spec(spec) for spec in specs],
        ce_weight=settings["ce_weight"],
        **arguments,
    )
    if arguments.get("num_samples"):
        fill_class_tables(module, torch.arange(arguments["num_samples"]) % CLASSES)
    return module.train()


def members(pair: str, rows: Iterable[str] = ROWS, **arguments: Any) -> list[DistillationModule]:
    """The modules of several methods on one teacher."""
    teacher = untrained_teacher(model_settings("pairs", pair)["teacher"])
    return [build(pair, row, teacher, **arguments) for row in rows]


def wait_for(device: torch.device | str) -> None:
    """Until the device has done all that was asked of it."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)
