"""Checkpoints within an epoch, from which a run continues bit for bit, and the random states that this needs."""

from __future__ import annotations

import random
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Checkpoint

from ickd_pl.errors import UserError
from ickd_pl.files import replacing
from ickd_pl.runs.agreement import Agreed
from ickd_pl.runs.checkpoint_io import writing_in_place
from ickd_pl.runs.finite import check_before_saving
from ickd_pl.training.metrics import gathered


class Saver(Checkpoint):
    """A callback that writes the run's checkpoint; the part of it that is about when and how, not where."""

    _validates = False

    def target(self) -> tuple[Path, Path | None]:
        """The checkpoint's path, and the path that the one before it is kept at, if it is kept."""
        raise NotImplementedError

    def save(self, trainer: pl.Trainer, path: Path | None = None) -> None:
        """Write the checkpoint, after a step, before or within an evaluation, or at an epoch's end; not in a dev run.

        Args:
            trainer: in ``fit``; call this on all ranks.
            path: another path than :meth:`target`'s.

        Raises:
            NonFiniteLoss: something in it is infinite or NaN; nothing is written.
            UserError: the file cannot be written.
        """
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        check_before_saving(trainer)
        self._validates = trainer.validating
        try:
            if not trainer.is_global_zero:
                trainer.save_checkpoint(self.target()[0], weights_only=False)  # collective; only rank 0 writes
                return
            target, keep = self.target() if path is None else (path, None)
            with replacing(target, keep) as temporary, writing_in_place(trainer.strategy):
                trainer.save_checkpoint(temporary, weights_only=False)
        finally:
            self._validates = False

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        if self._validates:
            # The evaluation starts anew: an evaluation that stands in its first batch, whichever it is.
            # private: lightning loops.val_loop.batch_progress
            progress = checkpoint["loops"]["fit_loop"]["epoch_loop.val_loop.batch_progress"]
            for part in ("total", "current"):
                progress[part] = {"ready": 1, "started": 1, "processed": 0, "completed": 0}
            progress["is_last_batch"] = False
            if trainer.is_last_batch:  # the next epoch begins with its first batch, also where this one was cut short
                # private: lightning loops.combined_loader
                checkpoint["loops"]["fit_loop"]["state_dict"].pop("combined_loader", None)


def saver_of(trainer: pl.Trainer) -> Saver | None:
    """The callback that writes the trainer's checkpoint, if there is one; StepCheckpoint only if there is no other."""
    savers = [c for c in trainer.callbacks if isinstance(c, Saver)]  # type: ignore[attr-defined]
    return next((c for c in savers if not isinstance(c, StepCheckpoint)), next(iter(savers), None))


def is_over(trainer: pl.Trainer) -> bool:
    """Whether this was the last step: what is left (an evaluation, a row of the record) does not begin again."""
    return trainer.should_stop or 0 < trainer.max_steps <= trainer.global_step


def more_follows(trainer: pl.Trainer) -> bool:
    """Whether this step is followed by an evaluation or the end of the epoch, which a checkpoint now would skip."""
    if trainer.is_last_batch:
        return True
    fetcher = trainer.fit_loop._data_fetcher  # private: lightning fit_loop._data_fetcher
    # private: lightning epoch_loop._should_check_val_fx
    return fetcher is not None and trainer.fit_loop.epoch_loop._should_check_val_fx(fetcher)


class StepCheckpoint(Agreed, Saver):
    """Writes a checkpoint every few minutes within an epoch, and stores the random states in every checkpoint.

    The checkpoint is that of the trainer's first :class:`Saver`, such as ``checkpoints/last.ckpt`` of a run folder. In
    a trainer that has no other one, this callback itself writes ``path``, also after every epoch. From any of these
    files, and from those of other callbacks that save after a step or an epoch, a run continues with the same random
    numbers (Python, NumPy, torch on the CPU and on the GPU, of each rank), dropout included. Within an epoch,
    the batches must be a function of epoch and step, as those of this package's loader are, or the loader must have
    ``state_dict`` and ``load_state_dict``: Lightning begins any other one anew.

    Args:
        minutes: time between two checkpoints within an epoch; 0: none.
        path: the file, if no other callback writes one; None: ``last.ckpt`` in the trainer's ``default_root_dir``.

    Raises:
        UserError: ``minutes`` is negative.
    """

    def __init__(self, minutes: float = 5.0, path: str | None = None) -> None:
        if not 0 <= minutes < float("inf"):
            raise UserError(f"StepCheckpoint.minutes: expected 0 or more, got {minutes}")
        self.minutes = minutes
        self.path = path
        self._saved = 0.0
        self._states: Any = None
        self._before_evaluation: dict[str, Any] | None = None
        self._within: bool | None = None  # evaluates within an epoch
        self._root = Path()

    def target(self) -> tuple[Path, Path | None]:
        return (Path(self.path) if self.path is not None else self._root / "last.ckpt"), None

    def vote(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> float:
        return float(self.minutes > 0 and time.monotonic() - self._saved >= 60 * self.minutes)

    def act(self, trainer: pl.Trainer, pl_module: pl.LightningModule, agreed: float) -> None:
        saver = saver_of(trainer)
        if agreed and saver is not None and not is_over(trainer) and (trainer.validating or not more_follows(trainer)):
            saver.save(trainer)
            self._saved = time.monotonic()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        if self._within is None:  # asked once: most runs evaluate at the end of an epoch only
            self._within = trainer.val_check_batch is None or trainer.val_check_batch < trainer.num_training_batches
        # torch's loaders draw a number when an evaluation begins.
        if trainer.is_last_batch or (self._within and more_follows(trainer)):
            self._before_evaluation = random_state(trainer.strategy.root_device)

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        self._root = Path(trainer.default_root_dir)
        self._within = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._saved = time.monotonic()
        if self._states is not None:
            own = self._states[trainer.global_rank % len(self._states)]
            set_random_state(own, trainer.strategy.root_device)
            self._states = None
            if not trainer.fit_loop.restarted_mid_epoch:
                # torch's loader draws from the random state when an epoch begins: let it draw from this one.
                # private: lightning fit_loop._data_fetcher
                iter(trainer.fit_loop._data_fetcher)  # type: ignore[arg-type]

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if saver_of(trainer) is self:
            self.save(trainer)
        self._saved = time.monotonic()

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        super().on_save_checkpoint(trainer, pl_module, checkpoint)
        state = self._before_evaluation if trainer.validating else None
        checkpoint["random_states"] = gathered(state or random_state(trainer.strategy.root_device), trainer)

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        states = checkpoint.get("random_states")
        self._states = states if isinstance(states, list) and states else None


def random_state(device: torch.device) -> dict[str, Any]:
    """The states of this process's random generators, as plain data and tensors."""
    name, keys, *rest = np.random.get_state(legacy=True)
    state: dict[str, Any] = {
        "python": random.getstate(),
        "numpy": [name, torch.from_numpy(np.asarray(keys, dtype=np.int64)), *rest],
        "torch": torch.get_rng_state(),
    }
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def set_random_state(state: Any, device: torch.device) -> None:
    """Set the random generators to what :func:`random_state` returned.

    Raises:
        UserError: the state is damaged.
    """
    try:
        version, internal, gauss = state["python"]
        random.setstate((version, tuple(internal), gauss))
        name, keys, *rest = state["numpy"]
        np.random.set_state((name, np.asarray(keys.tolist(), dtype=np.uint32), *rest))
        torch.set_rng_state(state["torch"])
        if device.type == "cuda" and "cuda" in state:
            torch.cuda.set_rng_state(state["cuda"], device)
    except (TypeError, ValueError, KeyError, AttributeError, RuntimeError) as error:
        raise UserError(f"the checkpoint's random states are damaged ({type(error).__name__})") from error
