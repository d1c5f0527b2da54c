"""Networks for 32x32 images."""

from ickd_pl.models.base import FeatureNet
from ickd_pl.models.registry import get_model, model_names

__all__ = ["FeatureNet", "get_model", "model_names"]
