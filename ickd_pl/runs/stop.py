"""Stops a process on SIGTERM, Ctrl-C and SIGUSR1: a fit after its current step, with a checkpoint, on all ranks.

The handlers only note the signal. Outside a fit, where there is nothing to save, they end the process at once. Systems
without one of the signals (Windows has no SIGUSR1), and threads other than the main one, do without it.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import WeightAveraging
from pytorch_lightning.plugins.environments import LightningEnvironment  # type: ignore[attr-defined]
from pytorch_lightning.utilities import rank_zero_only

from ickd_pl.runs.agreement import Agreed, agree
from ickd_pl.runs.console import log, warn
from ickd_pl.runs.step import is_over, more_follows, saver_of
from ickd_pl.training.metrics import gathered

SIGNALS = {int(getattr(signal, name)): name for name in ("SIGTERM", "SIGINT", "SIGUSR1") if hasattr(signal, name)}
REQUEUE = int(getattr(signal, "SIGUSR1", 0))
"""The signal that SLURM sends before a job's time is up (``#SBATCH --signal=SIGUSR1@90``)."""


class Stopped(SystemExit):
    """The process was stopped by a signal; its ``code`` is 128 + the signal's number, or 0 after a requeue.

    Attributes:
        signum: the signal.
        in_fit: a fit has saved its checkpoint and, in a SLURM job, tried to requeue it.
    """

    def __init__(self, signum: int, code: int | None = None) -> None:
        super().__init__(128 + signum if code is None else code)
        self.signum, self.in_fit = signum, code is not None


class _Received:
    """What this process knows of signals.

    Attributes:
        first: the first signal; later ones change nothing.
        waits: a fit is running, or the process is already leaving: the signal is only noted.
    """

    first: int | None = None
    waits = False


def _handle(signum: int, frame: Any) -> None:
    is_first, _Received.first = _Received.first is None, _Received.first or signum
    if is_first and not _Received.waits:
        _Received.waits = True
        raise Stopped(signum)


def raise_if_stopped() -> None:
    """Raise :class:`Stopped` if a signal came during a fit that has ended since."""
    if _Received.first is not None:
        raise Stopped(_Received.first)


def handling() -> bool:
    """Whether this process's signals are handled here."""
    return any(signal.getsignal(signum) is _handle for signum in SIGNALS)


@contextmanager
def handled_signals() -> Iterator[None]:
    """Handle the signals of this process by :class:`Stopped`, which is raised at once or after a fit's step."""
    if threading.current_thread() is not threading.main_thread() or handling():
        yield
        return
    old = {signum: signal.getsignal(signum) for signum in SIGNALS}
    _Received.first, _Received.waits = None, False
    for signum in SIGNALS:
        signal.signal(signum, _handle)
    try:
        yield
    finally:
        for signum, handler in old.items():
            signal.signal(signum, signal.SIG_DFL if handler is None else handler)
        _Received.first, _Received.waits = None, False


class SignalStop(Agreed):
    """Stops a fit after its current step when a signal reaches any rank, with one checkpoint, on all ranks.

    SIGTERM, SIGINT (Ctrl-C) and SIGUSR1 count; further signals change nothing. The checkpoint is written by the
    trainer's first :class:`~ickd_pl.runs.step.Saver`; then all ranks raise :class:`Stopped` with the status 143, 130 or
    138. SIGUSR1 in a SLURM job requeues the job once, and the status is 0. Within an evaluation, the fit stops after
    the current batch and evaluates again when it continues. After its last step, a fit ends as usual.
    """

    def __init__(self) -> None:
        self._agreed = 0
        self._handlers: Any = None

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        # One rank that left at once would be missed by the others, in the middle of what they do together.
        _Received.waits = _Received.waits or (stage == "fit" and trainer.world_size > 1)

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._agreed = 0
        if not handling():
            self._handlers = handled_signals()
            self._handlers.__enter__()
        _Received.waits = True
        # Lightning's handler talks to the other ranks from inside the signal, at which they may be anywhere, and its
        # loop asks all ranks after every step whether one has come.
        # private: lightning _signal_connector.register_signal_handlers
        trainer._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]
        # private: lightning epoch_loop._broadcast_sigterm_tensor
        trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None  # type: ignore[method-assign]

    def vote(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> float:
        return float(_Received.first or 0)

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
        _Received.waits = _Received.first is not None
        if self._handlers is not None:
            self._handlers.__exit__(None, None, None)
            self._handlers = None

    def _leave(self, trainer: pl.Trainer) -> None:
        code = 128 + self._agreed
        if self._agreed == REQUEUE and trainer.is_global_zero and in_slurm() and requeue():
            code = 0
        raise Stopped(self._agreed, _of_this_rank(gathered(code, trainer)[0]))


def in_slurm() -> bool:
    """Whether this process belongs to a SLURM job."""
    return "SLURM_JOB_ID" in os.environ


def requeue() -> bool:
    """Requeue this process's SLURM job; tell the user, and return whether it worked."""
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    job = f"{array}_{task}" if array and task else os.environ.get("SLURM_JOB_ID", "")
    if not re.fullmatch(r"[0-9_]+", job):
        warn(f"warning: SLURM_JOB_ID is {job!r}: expected a number; the job is not requeued")
        return False
    try:
        done = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        warn(f"warning: job {job} is not requeued: scontrol: {error}")
        return False
    if done.returncode:
        warn(f"warning: job {job} is not requeued: scontrol requeue: {' '.join(done.stderr.split())[:200]}")
        return False
    log(f"job {job} is requeued, and goes on from its last checkpoint")
    return True


def explain(stop: Stopped) -> int:
    """Tell the user why the process ends, requeue a SLURM job where that is not done, and return the exit status."""
    code = int(stop.code or 0)
    if stop.signum == REQUEUE and not stop.in_fit and in_slurm() and _rank() == 0:
        code = 0 if requeue() else code
    if code:
        name = "Ctrl-C" if stop.signum == signal.SIGINT else SIGNALS[stop.signum]
        warn(f"stopped by {name}: run the same command to resume")
    return code


def report_from(rank: int, line: str, code: int) -> int:
    """Print a line on one rank, after an error on all ranks; returns this rank's exit status."""
    if _rank() == rank:
        print(line, file=sys.stderr, flush=True)
    return _of_this_rank(code)


def _rank() -> int:
    return int(getattr(rank_zero_only, "rank", 0) or 0)  # private: lightning rank_zero_only.rank


def _of_this_rank(code: int) -> int:
    """The exit status of this process when all ranks leave together.

    Lightning kills all ranks, also one that is still writing, when a process that it has started ends with an error.
    """
    started = LightningEnvironment().creates_processes_externally and not torch.distributed.is_torchelastic_launched()
    return 0 if started and _rank() > 0 and "SLURM_PROCID" not in os.environ else code
