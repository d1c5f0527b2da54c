"""Networks for 32x32 images. A new file in this folder that calls ``register`` is found by being there."""

from ickd_pl.models.base import FeatureNet
from ickd_pl.models.discovery import import_all
from ickd_pl.models.registry import get_model, model_names, register

__all__ = ["FeatureNet", "get_model", "model_names", "register"]

import_all(__name__)
