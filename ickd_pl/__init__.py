"""Knowledge distillation on PyTorch Lightning: the benchmark of ICKD and RepDistiller, and your own models."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ickd_pl._moved import MOVED, keep_old_paths
from ickd_pl.data import CIFAR10, CIFAR100, Batch, DataInfo, Digits, ImageFolder
from ickd_pl.errors import IncompatiblePair, UserError
from ickd_pl.models import get_model, model_names
from ickd_pl.models.features import Features, FeatureShapes
from ickd_pl.models.hooked import HookedNet, LayerMap
from ickd_pl.strategies import LossStrategy
from ickd_pl.training.module import DistillationModule
from ickd_pl.version import __version__
from ickd_pl.weights import load_student, load_teacher

__all__ = [
    "CIFAR10",
    "CIFAR100",
    "Batch",
    "DataInfo",
    "Digits",
    "DistillationModule",
    "FeatureShapes",
    "Features",
    "HookedNet",
    "ImageFolder",
    "IncompatiblePair",
    "LayerMap",
    "LossStrategy",
    "UserError",
    "__version__",
    "get_model",
    "load_student",
    "load_teacher",
    "model_names",
]

keep_old_paths()

if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        """A module under its old name, as in ``ickd_pl.features.Features``."""
        if name in MOVED:
            return import_module(f"{__name__}.{name}")
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
