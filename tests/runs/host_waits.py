"""Counts where the host reads a tensor's value, for which it would have to wait for a GPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytorch_lightning as pl
from torch.utils._python_dispatch import TorchDispatchMode

READS = (
    *("_local_scalar_dense", "item", "is_nonzero", "nonzero", "masked_select", "equal", "unique", "allclose"),
    *("bincount", "repeat_interleave", "linalg_eigh", "_linalg_eigh", "linalg_svd", "_linalg_svd"),
    "lift_fresh",  # torch.tensor(...): the device's copy of a number waits
)
INDEXING = ("index", "index_put", "index_put_", "_index_put_impl_")


class _Mode(TorchDispatchMode):
    def __init__(self, found: list[str]) -> None:
        super().__init__()
        self.found = found

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(func).split(".")[1]
        # A boolean mask as an index looks for its true elements.
        masks = name in INDEXING and any(x is not None and x.dtype.is_signed is False for x in args[1])
        if name in READS or name.startswith("_unique") or masks:
            self.found.append(str(func))
        return func(*args, **(kwargs or {}))


class HostWaits(pl.Callback):
    """Counts in every step of training, from its first hook to the next step's, and of evaluation and prediction.

    Args:
        skip: number of training steps at the beginning that are not counted.

    Never counted are an epoch's first step, which logs its loss, its last one, at whose end the random states are kept,
    and the first step of an evaluation, which looks at the values of its batch.

    Attributes:
        found: names of the operations.
        steps: number of training steps counted.
        evaluated: number of steps of evaluation and prediction counted.
    """

    def __init__(self, skip: int = 0) -> None:
        self.left = skip
        self.found: list[str] = []
        self.steps = self.evaluated = 0
        self._open = ExitStack()

    @contextmanager
    def counting(self) -> Iterator[None]:
        with _Mode(self.found):
            yield

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
        # The step before is counted to here, with all hooks after it.
        self._open.close()
        self.left -= 1
        if self.left < 0 < batch_idx and not trainer.is_last_batch:
            self.steps += 1
            self._open.enter_context(self.counting())

    def _evaluates(self, trainer: Any, module: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self._open.close()
        if batch_idx:
            self.evaluated += 1
            self._open.enter_context(self.counting())

    def _closes(self, *args: Any, **kwargs: Any) -> None:
        self._open.close()

    on_validation_batch_start = on_test_batch_start = on_predict_batch_start = _evaluates
    on_train_epoch_end = on_validation_start = on_exception = _closes
    on_validation_epoch_end = on_test_epoch_end = on_predict_epoch_end = _closes
