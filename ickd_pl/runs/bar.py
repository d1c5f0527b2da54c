"""A progress bar that is not drawn more often than anyone can read."""

from __future__ import annotations

import time
from typing import Any

from pytorch_lightning.callbacks import TQDMProgressBar

# Between two drawings; a drawing takes as long as several layers of a small network.
SECONDS = 0.1


class SparingBar(TQDMProgressBar):
    """Lightning's bar, drawn at most ten times a second, and after the last batch."""

    _drawn = 0.0

    def _due(self, last: bool) -> bool:
        now = time.monotonic()
        if not last and now - self._drawn < SECONDS:
            return False
        self._drawn = now
        return True

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if self._due(trainer.is_last_batch):
            super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    def on_validation_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        if self._due(batch_idx + 1 == self.total_val_batches_current_dataloader):
            super().on_validation_batch_end(trainer, pl_module, outputs, batch, batch_idx, dataloader_idx)

    def on_test_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        if self._due(batch_idx + 1 == self.total_test_batches_current_dataloader):
            super().on_test_batch_end(trainer, pl_module, outputs, batch, batch_idx, dataloader_idx)

    def on_predict_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        if self._due(batch_idx + 1 == self.total_predict_batches_current_dataloader):
            super().on_predict_batch_end(trainer, pl_module, outputs, batch, batch_idx, dataloader_idx)
