"""Callbacks that act on all ranks in the same step, of which any rank may have the cause."""

from __future__ import annotations

import time
from typing import Any

import pytorch_lightning as pl
import torch

# How often the ranks of a GPU run agree; a CPU run agrees after every step.
SECONDS = 2.0


class Agreed(pl.Callback):
    """A callback that votes after a step and acts on the highest vote of all ranks.

    All such callbacks of a trainer share one collective call, after the hooks of all other callbacks: they move to the
    end of the trainer's list. They are no ``Checkpoint``, which would replace Lightning's default one. On a CPU the
    call takes place after every step; on a GPU, where reading its result waits for the device, as rarely as every two
    seconds. In between two steps of accumulated gradients, which no checkpoint contains, nobody acts.
    """

    _steps = 0
    _next = 1
    _since = 0.0
    _pieces: list[Agreed] | None = None  # all of them, in the first of them; else none
    _alone = False  # one process on a CPU, which has nobody to ask and nothing to wait for

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        # A new list: Lightning is going through the old one.
        trainer.callbacks = sorted(trainer.callbacks, key=lambda each: isinstance(each, Agreed))  # type: ignore[attr-defined]
        self._pieces = None

    def vote(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> float:
        """This rank's vote, 0 or more."""
        return 0.0

    def act(self, trainer: pl.Trainer, pl_module: pl.LightningModule, agreed: float) -> None:
        """Act on the highest vote; called on all ranks in the same step, on a single CPU only if it is not 0."""

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._pieces is None:
            pieces = _pieces_of(trainer)
            self._pieces = pieces if pieces[0] is self else []
            self._alone = trainer.world_size == 1 and trainer.strategy.root_device.type == "cpu"
        if not self._pieces:
            return
        self._steps += 1
        # private: lightning fit_loop._should_accumulate
        if self._steps < self._next or trainer.fit_loop._should_accumulate():
            return
        if self._alone:
            for piece in self._pieces:
                if vote := piece.vote(trainer, pl_module):
                    piece.act(trainer, pl_module, vote)
            return
        pace = (time.perf_counter() - self._since) / self._steps if self._since else SECONDS
        pace = agree(trainer, pl_module, pace)
        on_cpu = trainer.strategy.root_device.type == "cpu"
        # At most twice as many as before, as the first steps may be slow or only queued.
        self._next = 1 if on_cpu else max(1, min(2 * self._steps, int(SECONDS / max(pace, 1e-6))))
        self._steps, self._since = 0, time.perf_counter()


def _pieces_of(trainer: pl.Trainer) -> list[Agreed]:
    return [each for each in trainer.callbacks if isinstance(each, Agreed)]  # type: ignore[attr-defined]


def agree(trainer: pl.Trainer, pl_module: pl.LightningModule, value: float = 0.0) -> float:
    """Let all callbacks vote and act; returns the highest ``value`` of all ranks. Call it on all ranks."""
    pieces = _pieces_of(trainer)
    votes = [*(piece.vote(trainer, pl_module) for piece in pieces), value]
    if trainer.world_size > 1:
        tensor = torch.tensor(votes, dtype=torch.float32, device=trainer.strategy.root_device)
        torch.distributed.all_reduce(tensor, op=torch.distributed.ReduceOp.MAX)
        votes = tensor.tolist()
    for piece, agreed in zip(pieces, votes, strict=False):
        piece.act(trainer, pl_module, agreed)
    return votes[-1]
