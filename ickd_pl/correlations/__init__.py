"""How far a student's correlation matrices are from its teacher's, before and after distillation."""

from __future__ import annotations

from ickd_pl.correlations.measures import (
    Subject,
    View,
    compare,
    likeness_order,
    logit_correlation,
    mean_absolute_difference,
    mean_channel_correlation,
    mean_ickd_loss,
    recalibrate_batch_norm,
)

__all__ = [
    "Subject",
    "View",
    "compare",
    "likeness_order",
    "logit_correlation",
    "mean_absolute_difference",
    "mean_channel_correlation",
    "mean_ickd_loss",
    "recalibrate_batch_norm",
]
