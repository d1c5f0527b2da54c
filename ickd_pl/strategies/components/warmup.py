"""A weight that grows linearly over the first epochs."""

from __future__ import annotations


def warmed_up(weight: float, epoch: int | None, warmup_epochs: int) -> float:
    """``weight * min(epoch / warmup_epochs, 1)``.

    Args:
        weight: after the warm-up.
        epoch: main epoch, from 1; None outside a fit, where the full weight counts.
        warmup_epochs: 0 is no warm-up.
    """
    return weight if epoch is None or not warmup_epochs else weight * min(epoch / warmup_epochs, 1.0)
