"""Turn what the user names or hands over into a network that shows Features."""

from __future__ import annotations

import torch
from torch import nn

from ickd_pl.errors import UserError
from ickd_pl.models import get_model
from ickd_pl.models.base import FeatureNet
from ickd_pl.models.features import Features, FeatureShapes
from ickd_pl.models.hooked import HookedNet, LayerMap
from ickd_pl.seeding import seeded

Network = str | nn.Module


def network_name(network: Network) -> str:
    """The name for messages and folders: the registry's, or the class's."""
    if isinstance(network, HookedNet):
        return network_name(network.net)
    if isinstance(network, FeatureNet) and network.name:
        return network.name
    return network if isinstance(network, str) else type(network).__name__


def make_network(
    network: Network, num_classes: int, layers: LayerMap | None, *seed_parts: object
) -> FeatureNet | HookedNet:
    """Build a network by name (its start is a function of ``seed_parts``), or prepare the user's own.

    Args:
        network: a registry name, or any ``nn.Module`` from images (B, 3, H, W) to logits (B, K).
        num_classes: K.
        layers: where to tap the features of a network that is not the project's own.
        seed_parts: see :func:`ickd_pl.seeding.derive_seed`.

    Raises:
        UserError: unknown name, or a network of the user's without ``layers``.
    """
    if isinstance(network, str):
        if layers is not None:
            raise UserError(f"layers are for your own networks; {network} is the project's and knows its features")
        with seeded(*seed_parts, network):
            return get_model(network, num_classes)
    if layers is not None:
        return HookedNet(network, layers)
    if isinstance(network, FeatureNet | HookedNet):
        return network
    raise UserError(
        f"{type(network).__name__} does not show its features: say where they are with student_layers or "
        "teacher_layers, a LayerMap(stem=..., stages=(...), final=..., pooled=...) of module paths"
    )


def check_classes(num_classes: int, student: FeatureShapes, teacher: FeatureShapes | None) -> None:
    """Raise :class:`UserError` where a network has other classes than the data; with all their numbers."""
    networks = [("student", student)] + ([] if teacher is None else [("teacher", teacher)])
    networks.sort(key=lambda network: network[1].logits == (num_classes,))  # what is wrong comes first
    (role, wrong), *others = networks
    if wrong.logits != (num_classes,):
        rest = "".join(f", {other} {shapes.name} {shapes.logits[0]}" for other, shapes in others)
        raise UserError(
            f"{role} {wrong.name} has {wrong.logits[0]} classes, the data {num_classes}{rest}: "
            "give networks of as many classes as the data, or set num_classes"
        )


def probe(net: FeatureNet | HookedNet, name: str, image_size: int, preact: bool) -> FeatureShapes:
    """Shapes of the features of one image; the network (mode, buffers) is left as it was.

    Raises:
        UserError: the network does not take images of this size.
    """
    modes = [(module, module.training) for module in net.modules()]
    reference = next(iter(net.parameters()))
    net.eval()
    try:
        with torch.no_grad():
            zeros = torch.zeros(2, 3, image_size, image_size, device=reference.device, dtype=reference.dtype)
            features: Features = net.features(zeros, preact=preact)
    except RuntimeError as error:
        raise UserError(f"{name} does not take images of 3x{image_size}x{image_size}: {error}") from error
    finally:
        for module, mode in modes:
            module.training = mode
    return FeatureShapes.of(name, features)
