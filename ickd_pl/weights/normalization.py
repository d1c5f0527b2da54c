"""Mean and std of images, as a user or a file says them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

SMALLEST_STD = 1e-6
"""Deviations below this, of pixels scaled to 0..1, are of no images, and make numbers that overflow."""


def three_numbers(values: Any) -> list[float] | None:
    """Three finite numbers out of a list, a tuple, a tensor or an array; None if they are anything else."""
    if isinstance(values, torch.Tensor | np.ndarray):
        values = values.reshape(-1).tolist() if math.prod(values.shape) == 3 else None
    if not isinstance(values, Sequence) or isinstance(values, str | bytes) or len(values) != 3:
        return None
    if not all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
        return None
    try:
        found = [float(value) for value in values]
    except OverflowError:
        return None
    return found if all(map(math.isfinite, found)) else None


def fault_of(mean: Sequence[float], std: Sequence[float]) -> str:
    """What is wrong with a mean and a std of pixels scaled to 0..1, three numbers each, and what to do; or ``""``."""
    if max(*mean, *std) > 1 and min(*mean, *std) >= 0:
        return "they are not of pixels scaled to 0..1: divide them by 255"
    if not all(0 <= value <= 1 for value in mean):
        return "every mean must be from 0 to 1"
    if not all(SMALLEST_STD <= value <= 1 for value in std):
        return f"every std must be from {SMALLEST_STD:g} to 1"
    return ""
