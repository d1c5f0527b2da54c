"""Build a network by name, or wrap the user's own so that it returns Features."""

from __future__ import annotations

import torch
from torch import nn

from ickd_pl.errors import UserError
from ickd_pl.models import get_model
from ickd_pl.models.base import FeatureNet
from ickd_pl.models.deployed import DeployedNet
from ickd_pl.models.features import Features, FeatureShapes
from ickd_pl.models.hooked import HookedNet, LayerMap
from ickd_pl.seeding import seeded

Network = str | nn.Module


def network_name(network: Network) -> str:
    """The name for messages and folders: the registered one, else the class name."""
    if isinstance(network, HookedNet):
        return network_name(network.net)
    if isinstance(network, DeployedNet):
        return f"{network_name(network.net)}_{type(network.head).__name__}"
    if isinstance(network, FeatureNet) and network.name:
        return network.name
    return network if isinstance(network, str) else type(network).__name__


def make_network(
    network: Network, num_classes: int, layers: LayerMap | None, *seed_parts: object
) -> FeatureNet | HookedNet:
    """Build a network by name (its weights depend on ``seed_parts`` alone), or wrap the user's own.

    Args:
        network: a registry name, or any ``nn.Module`` from images (B, 3, H, W) to logits (B, K).
        num_classes: K.
        layers: module paths of the features in the user's own network.
        seed_parts: see :func:`ickd_pl.seeding.derive_seed`.

    Raises:
        UserError: unknown name, or the user's own network without ``layers``.
    """
    if isinstance(network, str):
        if network.lstrip().startswith("{"):  # which nothing could be made of
            raise UserError(
                f"no class is found for {network}: check the name after class_path, and that its module lies in the "
                "current folder or is installed"
            )
        if "." in network:  # no network of the registry
            raise UserError(
                f"unknown network {network}: a class of your own is given as '{{class_path: {network}}}', with layers"
            )
        if layers is not None:
            raise UserError(f"layers are for your own networks; {network} is a network of ickd_pl and needs none")
        with seeded(*seed_parts, network):
            return get_model(network, num_classes)
    if layers is not None:
        return HookedNet(network, layers)
    if isinstance(network, FeatureNet | HookedNet):
        return network
    raise UserError(
        f"{type(network).__name__} does not return features: give their module paths with student_layers or "
        "teacher_layers, a LayerMap(stem=..., stages=(...), final=..., pooled=...)"
    )


def check_classes(num_classes: int, student: FeatureShapes, teacher: FeatureShapes | None) -> None:
    """Raise :class:`UserError` with all numbers of classes where a network's differs from the data's."""
    networks = [("student", student)] + ([] if teacher is None else [("teacher", teacher)])
    networks.sort(key=lambda network: network[1].logits == (num_classes,))  # the mismatch comes first
    (role, wrong), *others = networks
    if wrong.logits != (num_classes,):
        rest = "".join(f", {other} {shapes.name} {shapes.logits[0]}" for other, shapes in others)
        raise UserError(
            f"{role} {wrong.name} has {wrong.logits[0]} classes, the data {num_classes}{rest}: "
            "give networks with as many classes as the data, or set num_classes"
        )


def probe(net: FeatureNet | HookedNet, name: str, image_size: int | tuple[int, ...], preact: bool) -> FeatureShapes:
    """Shapes of the features of one image; the network (mode, buffers) is left as it was.

    Raises:
        UserError: the network does not take images of this size, or its last layer is not the one that it says.
    """
    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    modes = [(module, module.training) for module in net.modules()]
    reference = next(iter(net.parameters()))
    net.eval()
    try:
        with torch.no_grad():
            zeros = torch.zeros(2, 3, height, width, device=reference.device, dtype=reference.dtype)
            features: Features = net.features(zeros, preact=preact)
        _check_classifier(net, name, features)
    except (RuntimeError, AssertionError) as error:  # transformers assert the size of their images
        why = " ".join(str(error).split())[:300]
        raise UserError(f"{name} does not take images of 3x{height}x{width}: {why}") from error
    finally:
        for module, mode in modes:
            module.training = mode
    return FeatureShapes.of(name, features)


def _check_classifier(net: FeatureNet | HookedNet, name: str, features: Features) -> None:
    """Raise :class:`UserError` if what a network says is its last layer does not make its logits."""
    if features.classifier is None:
        return
    try:
        made = features.classifier(features.pooled.flatten(1))
        fits = made.shape == features.logits.shape and torch.allclose(made, features.logits, rtol=1e-3, atol=1e-3)
    except RuntimeError:
        fits = False
    if not fits:
        layer = net.layers.classifier if isinstance(net, HookedNet) else net.classifier_path
        raise UserError(
            f"{name}: its layer '{layer}' does not turn the pooled vector {tuple(features.pooled.shape[1:])} into the "
            f"logits {tuple(features.logits.shape[1:])}: name the linear layer that does, and as pooled its input, or "
            "leave classifier out"
        )
