"""Weights by rule: every tensor of a state dict is a function of its key, so no weights need to be stored."""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor


def fill(
    state_dict: Mapping[str, Tensor], *, prefix: str = "", salt: str = "", fan_in: bool = False
) -> dict[str, Tensor]:
    """Float32 values for every tensor of ``state_dict``; counters are 0.

    Standard normal values times 0.05, seeded by the key. Variances become ``abs + 0.5``, batch-norm weights ``1 +``.

    Args:
        state_dict: its keys, shapes and kinds are used, not its values.
        prefix: put before each key in the seed.
        salt: put after each key in the seed.
        fan_in: scale tensors of two or more dimensions by ``1 / sqrt(fan-in)`` instead of 0.05.
    """
    return {
        key: _values(state_dict, key, prefix + key + salt, fan_in)
        if state_dict[key].is_floating_point()
        else torch.zeros(state_dict[key].shape, dtype=state_dict[key].dtype)
        for key in sorted(state_dict)
    }


def _values(state_dict: Mapping[str, Tensor], key: str, seed: str, fan_in: bool) -> Tensor:
    shape = tuple(state_dict[key].shape)
    draws = np.random.default_rng(zlib.crc32(seed.encode())).standard_normal(shape)
    scaled = fan_in and len(shape) >= 2
    values = draws / math.sqrt(math.prod(shape[1:])) if scaled else draws * 0.05
    if key.endswith("running_var"):
        values = np.abs(values) + 0.5
    elif key.endswith(".weight") and key.removesuffix("weight") + "running_mean" in state_dict:
        values = 1 + values
    return torch.as_tensor(values).float()
