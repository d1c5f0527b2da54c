"""Stops a fit on SIGTERM, Ctrl-C and SIGUSR1: after its current step, with a checkpoint, on all ranks."""

from __future__ import annotations

import os
import sys
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import WeightAveraging
from pytorch_lightning.plugins.environments import LightningEnvironment  # type: ignore[attr-defined]

from ickd_pl.runs.agreement import Agreed, agree
from ickd_pl.runs.console import rank as own_rank
from ickd_pl.runs.signals import (
    REQUEUE,
    Received,
    Stopped,
    handled_signals,
    handling,
    in_slurm,
    requeue,
    wait_from_here,
)
from ickd_pl.runs.step import is_over, more_follows, saver_of
from ickd_pl.training.metrics import gathered


class SignalStop(Agreed):
    """Stops a fit after its current step when a signal reaches any rank, with one checkpoint, on all ranks.

    SIGTERM, SIGINT (Ctrl-C) and SIGUSR1 count; further signals change nothing. The checkpoint is written by the
    trainer's first :class:`~ickd_pl.runs.step.Saver`; then all ranks raise :class:`Stopped` with the status 143, 130 or
    138. SIGUSR1 in a SLURM job requeues the job once, and the status is 0. Within an evaluation, the fit stops after
    the current batch and evaluates again when it continues. After its last step, a fit ends as usual. A single process
    that has not updated anything yet, as while it compiles its first step, has nothing to save and leaves at once.
    """

    def __init__(self) -> None:
        self._agreed = 0
        self._handlers: Any = None

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        # One rank that left at once would be missed by the others, in the middle of what they do together.
        if stage == "fit" and trainer.world_size > 1:
            wait_from_here()

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._agreed = 0
        if not handling():
            self._handlers = handled_signals()
            self._handlers.__enter__()
        wait_from_here()
        Received.waits = trainer.world_size > 1
        # Lightning's handler talks to the other ranks from inside the signal, at which they may be anywhere, and its
        # loop asks all ranks after every step whether one has come.
        # private: lightning _signal_connector.register_signal_handlers
        trainer._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]
        # private: lightning epoch_loop._broadcast_sigterm_tensor
        trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None  # type: ignore[method-assign]

    def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Any) -> None:
        wait_from_here()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        wait_from_here()
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    def vote(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> float:
        return float(Received.first or 0)

    def act(self, trainer: pl.Trainer, pl_module: pl.LightningModule, agreed: float) -> None:
        self._agreed = self._agreed or int(agreed)
        if is_over(trainer):
            return
        # Otherwise the evaluation, or the end of the epoch, stops.
        if self._agreed and (trainer.validating or not more_follows(trainer)):
            saver = saver_of(trainer)
            if saver is not None:
                saver.save(trainer)
            self._leave(trainer)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not trainer.sanity_checking:
            wait_from_here()
        self._within_validation(trainer, pl_module)

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        # Other loaders may have fewer batches on some rank, which would then wait for the others for ever.
        if trainer.world_size == 1 or getattr(trainer.val_dataloaders, "world_size", 0) == trainer.world_size:
            self._within_validation(trainer, pl_module)

    def _within_validation(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # An average of the weights takes the place of the weights during an evaluation: the epoch's end stops.
        averaged = any(isinstance(c, WeightAveraging) for c in trainer.callbacks)  # type: ignore[attr-defined]
        in_fit = trainer.state.fn == "fit" and not trainer.sanity_checking and not averaged
        # private: lightning fit_loop._should_accumulate
        if in_fit and not trainer.fit_loop._should_accumulate():
            if trainer.world_size > 1:
                agree(trainer, pl_module)
            else:
                self.act(trainer, pl_module, self.vote(trainer, pl_module))

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # The checkpoint of the epoch before is written; after the last epoch, the fit ends as usual.
        if self._agreed:
            self._leave(trainer)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self._end_of_fit()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self._end_of_fit()

    def _end_of_fit(self) -> None:
        Received.waits = Received.first is not None
        if self._handlers is not None:
            self._handlers.__exit__(None, None, None)
            self._handlers = None

    def _leave(self, trainer: pl.Trainer) -> None:
        code = 128 + self._agreed
        if self._agreed == REQUEUE and trainer.is_global_zero and in_slurm() and requeue():
            code = 0
        raise Stopped(self._agreed, _of_this_rank(gathered(code, trainer)[0]))


def report_from(rank: int, line: str, code: int) -> int:
    """Print a line on one rank, after an error on all ranks; returns this rank's exit status."""
    if own_rank() == rank:
        print(line, file=sys.stderr, flush=True)
    return _of_this_rank(code)


def _of_this_rank(code: int) -> int:
    """The exit status of this process when all ranks leave together.

    Lightning kills all ranks, also one that is still writing, when a process that it has started ends with an error.
    """
    started = LightningEnvironment().creates_processes_externally and not torch.distributed.is_torchelastic_launched()
    return 0 if started and own_rank() > 0 and "SLURM_PROCID" not in os.environ else code
