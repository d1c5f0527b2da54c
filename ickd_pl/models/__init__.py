"""Networks for 32x32 images. Every file in this folder is imported: a new one only has to call ``register``."""

from ickd_pl.models.base import FeatureNet
from ickd_pl.models.discovery import import_all
from ickd_pl.models.registry import get_model, model_names, register

__all__ = ["FeatureNet", "get_model", "model_names", "register"]

import_all(__name__)
