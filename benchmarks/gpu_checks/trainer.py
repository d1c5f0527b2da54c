"""Real fits on random images, with a clock and a counter of host waits in them."""

from __future__ import annotations

import contextlib
import io
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytorch_lightning as pl

from common import CLASSES, random_images, wait_for
from gpu_checks.record import Record, Values
from gpu_checks.timing import host_waits, spread, waits
from ickd_pl import CIFAR100
from ickd_pl.data.base import Images, TensorDataModule
from ickd_pl.runs import EpochRecord, RunFolder


class RandomImages(TensorDataModule):
    """Random pixels in CIFAR-100's shape and, in full size, number."""

    known_constants = CIFAR100.known_constants

    def __init__(self, record: Record, seed: int = 0) -> None:
        self.name, self.num_classes, self.image_size = "random", CLASSES, 32
        self.num_available = record.num_images
        super().__init__(batch_size=record.batch_size, seed=seed)
        self.hparams.pop("record")  # no part of a checkpoint

    def _read(self, split: str) -> Images:
        pixels, labels = random_images(self.num_available)
        count = self.num_available if split == "train" else self.num_available // 5
        return Images(pixels[:count], labels[:count])

    def _read_class_names(self) -> list[str]:
        return [str(number) for number in range(CLASSES)]


class Clock(pl.Callback):
    """Milliseconds of a training step in each round of the last epoch, and how long the evaluation behind it takes.

    Args:
        record: gives the device.
        warmup: steps that are left out at the start of an epoch.
        steps: in a round.
    """

    def __init__(self, record: Record, warmup: int, steps: int) -> None:
        self._device, self._warmup, self._steps = record.device, warmup, steps
        self._marks: list[float] = []
        self._evaluated = 0.0

    def _now(self) -> float:
        wait_for(self._device)
        return time.perf_counter()

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._marks = []

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx >= self._warmup and (batch_idx - self._warmup) % self._steps == 0:
            self._marks.append(self._now())

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._evaluated = self._now()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._evaluated = self._now() - self._evaluated

    def values(self) -> Values:
        gaps = [1e3 * (b - a) / self._steps for a, b in zip(self._marks, self._marks[1:], strict=False)]
        return spread(gaps) | ({"evaluation_s": round(self._evaluated, 3)} if self._evaluated else {})


class CountWaits(pl.Callback):
    """Host waits of the training steps ``first`` to ``last`` - 1 of an epoch."""

    def __init__(self, first: int, last: int) -> None:
        self._first, self._last, self._stack = first, last, ExitStack()
        self.found: Values = {}

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == self._first:
            self._counter = self._stack.enter_context(host_waits())
        elif batch_idx == self._last:
            self._stack.close()
            self.found = waits(self._counter, self._last - self._first)


def fit(
    record: Record,
    module: pl.LightningModule,
    batches: int,
    callbacks: Sequence[pl.Callback] = (),
    epochs: int = 1,
    evaluate: bool = False,
    keep: bool = False,
    progress_bar: bool = False,
    **trainer: Any,
) -> pl.Trainer:
    """Fit a module on random images.

    Args:
        record: gives the device.
        module: what is trained.
        batches: of an epoch.
        callbacks: beside the module's own.
        epochs: how many.
        evaluate: after every epoch.
        keep: with the project's record of epochs and its checkpoints.
        progress_bar: drawn, though not shown.
        trainer: further arguments of the Trainer.
    """
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        kept = [EpochRecord(RunFolder(Path(folder)), {})] if keep else []
        arguments: dict[str, Any] = {
            "accelerator": "gpu" if record.cuda else "cpu",
            "devices": 1,
            "limit_val_batches": (1 if record.tiny else 1.0) if evaluate else 0,
            **trainer,
        }
        made = pl.Trainer(
            default_root_dir=folder, max_epochs=epochs, limit_train_batches=batches, callbacks=[*kept, *callbacks],
            logger=False, enable_checkpointing=keep, enable_progress_bar=progress_bar, enable_model_summary=False,
            use_distributed_sampler=False, num_sanity_val_steps=0, **arguments,
        )  # fmt: skip
        made.fit(module, datamodule=RandomImages(record))
    return made


def timed_fit(record: Record, module: pl.LightningModule, steps: int, warmup: int = 5, **options: Any) -> Values:
    """Milliseconds of a training step under a Trainer; ``options`` are :func:`fit`'s."""
    if record.tiny:
        steps, warmup = 1, 5 if record.cuda else 0  # on a GPU so many that a step is captured
    clock = Clock(record, warmup, steps)
    callbacks = [*options.pop("callbacks", ()), clock]
    fit(record, module, warmup + steps * record.rounds + 1, callbacks, **options)
    return clock.values()


def counted_waits(record: Record, module: pl.LightningModule, **options: Any) -> Values:
    """Host waits of a training step under a Trainer, between two looks at the loss, which are 50 steps apart."""
    last = 30 if record.tiny else 45
    counter = CountWaits(5, last)
    fit(record, module, last + 1, [counter], **options)
    return counter.found
