"""Registry of the networks by name; every file in this folder registers its own."""

from __future__ import annotations

from collections.abc import Callable

from ickd_pl.errors import UserError, near
from ickd_pl.models.base import FeatureNet

_NETWORKS: dict[str, Callable[[int], FeatureNet]] = {}


def register(name: str, build: Callable[[int], FeatureNet]) -> None:
    """Register a network for :func:`get_model`.

    Args:
        name: for users, folders and checkpoints.
        build: returns the network for K classes; may be the class itself.

    Raises:
        ValueError: the name is taken.
    """
    if name in _NETWORKS:
        raise ValueError(f"two networks are called {name}")
    _NETWORKS[name] = build


def model_names() -> list[str]:
    """All names that :func:`get_model` accepts."""
    return list(_NETWORKS)


def get_model(name: str, num_classes: int = 100) -> FeatureNet:
    """Build a network. Its weights come from torch's global generator: call it in ``seeded(...)`` to fix them.

    Args:
        name: one of :func:`model_names`, such as ``resnet8x4`` or ``wrn_40_2``.
        num_classes: K, size of the logits.

    Raises:
        UserError: an unknown name (the message has the closest ones), or fewer than one class.

    Example:
        >>> import torch
        >>> net = get_model("resnet8x4", num_classes=10)
        >>> [tuple(stage.shape) for stage in net.features(torch.zeros(2, 3, 32, 32)).stages]
        [(2, 64, 32, 32), (2, 128, 16, 16), (2, 256, 8, 8)]
    """
    if name not in _NETWORKS:
        raise UserError(f"unknown network '{name}': {near(name, _NETWORKS)}")
    if num_classes < 1:
        raise UserError(f"num_classes must be at least 1, got {num_classes}")
    net = _NETWORKS[name](num_classes)
    net.name = name
    return net
