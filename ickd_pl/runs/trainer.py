"""The Trainer of the command line: whole numbers of batches stay whole numbers, and the bar takes little time."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import TQDMProgressBar

from ickd_pl.runs.bar import SparingBar


class CommandLineTrainer(pl.Trainer):
    """Lightning's Trainer, whose limits take a whole number as a number of batches and any other as a part of them.

    Lightning annotates them as ``float | int``, for which the parser makes 1.0, the whole epoch, of 1, one batch. The
    order of a union does not help: Python takes unions of the same types for one, in the order that came first. Where
    Lightning chooses its plain progress bar, it is a :class:`~ickd_pl.runs.bar.SparingBar`.

    Args:
        limit_train_batches: batches of an epoch: 1 is one batch, 1.0 all of them, 0.5 half of them.
        limit_val_batches: likewise for validation.
        limit_test_batches: likewise for test.
        limit_predict_batches: likewise for prediction.
        **kwargs: see ``pytorch_lightning.Trainer``.
    """

    def __init__(
        self,
        *,
        limit_train_batches: Any = None,
        limit_val_batches: Any = None,
        limit_test_batches: Any = None,
        limit_predict_batches: Any = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            limit_train_batches=limit_train_batches,
            limit_val_batches=limit_val_batches,
            limit_test_batches=limit_test_batches,
            limit_predict_batches=limit_predict_batches,
            **kwargs,
        )
        bar, given = self.progress_bar_callback, kwargs.get("callbacks") or []
        if type(bar) is TQDMProgressBar and bar not in (given if isinstance(given, list) else [given]):
            self.callbacks = [SparingBar() if each is bar else each for each in self.callbacks]  # type: ignore[attr-defined, has-type]
