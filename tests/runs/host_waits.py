"""Counts where the host reads a tensor's value, for which it would have to wait for a GPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytorch_lightning as pl
from torch.utils._python_dispatch import TorchDispatchMode

READS = ("_local_scalar_dense", "item", "is_nonzero", "nonzero", "masked_select", "equal", "unique", "allclose")


class _Mode(TorchDispatchMode):
    def __init__(self, found: list[str]) -> None:
        super().__init__()
        self.found = found

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(func).split(".")[1]
        # A boolean mask as an index looks for its true elements.
        masks = name == "index" and any(x is not None and x.dtype.is_signed is False for x in args[1])
        if name in READS or name.startswith("_unique") or masks:
            self.found.append(str(func))
        return func(*args, **(kwargs or {}))


class HostWaits(pl.Callback):
    """Counts in every training step, from its first hook to its last.

    Args:
        skip: number of steps at the beginning that are not counted: the first one logs its loss.

    Attributes:
        found: names of the operations.
        steps: number of steps counted.
    """

    def __init__(self, skip: int = 0) -> None:
        self.left = skip
        self.found: list[str] = []
        self.steps = 0
        self._open = ExitStack()

    @contextmanager
    def counting(self) -> Iterator[None]:
        with _Mode(self.found):
            yield

    def on_train_batch_start(self, *args: Any, **kwargs: Any) -> None:
        # The step before is counted to here, with all hooks after it.
        self._open.close()
        if self.left > 0:
            self.left -= 1
        else:
            self.steps += 1
            self._open.enter_context(self.counting())

    def on_train_epoch_end(self, *args: Any, **kwargs: Any) -> None:
        self._open.close()

    def on_validation_start(self, *args: Any, **kwargs: Any) -> None:
        self._open.close()

    def on_exception(self, *args: Any, **kwargs: Any) -> None:
        self._open.close()
