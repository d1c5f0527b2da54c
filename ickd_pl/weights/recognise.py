"""Recognise which of the project's networks a file's weights belong to."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ickd_pl.models import get_model, model_names


def network_of(state: Mapping[str, Tensor]) -> str | None:
    """The name of the network whose tensors have these names and shapes, for any number of classes, or None."""
    classifier = [value for value in state.values() if value.dim() == 2]
    if not classifier:
        return None
    found = _shapes(state)
    for name in model_names():
        with torch.device("meta"):  # shapes without numbers
            if _shapes(get_model(name, len(classifier[-1])).state_dict()) == found:
                return name
    return None


def _shapes(state: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    # Files of old torch versions have no num_batches_tracked.
    return {key: tuple(value.shape) for key, value in state.items() if not key.endswith("num_batches_tracked")}
