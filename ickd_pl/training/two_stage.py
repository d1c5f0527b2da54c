"""The first stage of a two-stage method, inside one fit: which epochs, which parameters, which mode."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import pytorch_lightning as pl
import torch
from pytorch_lightning.strategies import DDPStrategy
from torch import nn

from ickd_pl.errors import UserError
from ickd_pl.strategies import LossStrategy


class StagedModule(Protocol):
    """What this file needs of a :class:`ickd_pl.DistillationModule`."""

    @property
    def trainer(self) -> pl.Trainer: ...

    @property
    def current_epoch(self) -> int: ...

    @property
    def device(self) -> Any: ...

    @property
    def student(self) -> nn.Module: ...

    @property
    def adapters(self) -> nn.ModuleDict: ...

    def adapter_of(self, strategy: LossStrategy) -> nn.Module | None: ...

    def trainable(self) -> Iterator[nn.Parameter]: ...

    def train(self, mode: bool = True) -> nn.Module: ...


class Stages:
    """Tracks the stage of the current epoch, and freezes or unfreezes parameters accordingly.

    ``max_epochs`` counts main epochs. First-stage epochs come before them; the data loader numbers them below 0, so
    that two-stage and one-stage runs see the same batches in their main epochs.

    Args:
        strategies: the module's methods.
        student: the student's name, on which a method's first-stage learning rate may depend.

    Attributes:
        epochs: length of the first stage; 0 if there is none.
        epoch: the current main epoch, from 1; 0 and below in the first stage, None outside a fit.

    Raises:
        UserError: two methods have first stages of different lengths.
    """

    def __init__(self, strategies: Sequence[LossStrategy], student: str) -> None:
        lengths = {s.pretrain_epochs for s in strategies if s.pretrain_epochs}
        if len(lengths) > 1:
            names = ", ".join(f"{type(s).__name__} {s.pretrain_epochs}" for s in strategies if s.pretrain_epochs)
            raise UserError(
                f"first stages of different lengths cannot run together ({names}): set the same pretrain_epochs"
            )
        self.strategies = strategies
        self.student = student
        self.epochs = max(lengths, default=0)
        self.epoch: int | None = None
        self._clock: torch.Tensor | None = None
        self._extended: pl.Trainer | None = None

    @property
    def first(self) -> bool:
        """Whether the current epoch belongs to the first stage."""
        return self.epoch is not None and self.epoch < 1

    def lr(self, recipe: float) -> float:
        """Constant learning rate of the first stage; ``recipe`` if no method sets one."""
        rates = [s.first_stage_lr(self.student) for s in self.strategies if s.pretrain_epochs]
        return next((lr for lr in rates if lr is not None), recipe)

    def lr_factor(self, lr: float, milestones: Sequence[int]) -> Callable[[int], float]:
        """The schedule: maps the epoch of the fit (from 0) to the factor by which ``lr`` is multiplied."""

        def factor(epoch: int) -> float:
            main = epoch - self.epochs
            return self.lr(lr) / lr if main < 0 else float(0.1 ** bisect_right(milestones, main))

        return factor  # a plain function: the scheduler would store the attributes of other callables in checkpoints

    def extend(self, trainer: pl.Trainer) -> None:
        """Add the first stage to ``max_epochs``, and tell DDP that it leaves parameters unused."""
        if not self.epochs or self._extended is trainer:
            return
        self._extended = trainer
        # private: lightning fit_loop.max_epochs
        if trainer.fit_loop.max_epochs not in (None, -1):
            trainer.fit_loop.max_epochs += self.epochs  # private: lightning fit_loop.max_epochs
        if isinstance(trainer.strategy, DDPStrategy):
            trainer.strategy._ddp_kwargs["find_unused_parameters"] = True  # private: lightning strategy._ddp_kwargs

    def added_to(self, trainer: pl.Trainer) -> int:
        """Epochs of the first stage in the trainer's ``max_epochs``."""
        return self.epochs if self._extended is trainer and trainer.max_epochs not in (None, -1) else 0

    def _offset_loader(self, trainer: pl.Trainer) -> None:
        """Shift the data loader's epochs so that main epochs count from 0."""
        loader: Any = trainer.train_dataloader
        if hasattr(loader, "epoch_offset"):
            loader.epoch_offset = -self.epochs

    def resume(self, epoch: int) -> None:
        """Restore the stage of a checkpoint.

        Args:
            epoch: epoch in which the checkpoint was written, counted from 0 as in Lightning.
        """
        self.epoch = epoch - self.epochs + 1

    def start(self, module: StagedModule) -> None:
        """Start or resume a fit; resuming after the last batch of the first stage starts the main stage."""
        self._offset_loader(module.trainer)
        was_first = self.first
        self._enter(module)  # Lightning skips on_train_epoch_start when it resumes within an epoch
        if was_first and not self.first:
            self._restart_optimizer(module)

    def start_epoch(self, module: StagedModule) -> None:
        """Start an epoch; the first main epoch resets the optimizer."""
        self._enter(module)
        if self.epochs and self.epoch == 1:
            self._restart_optimizer(module)

    def leave(self) -> None:
        """Call at the end of the fit."""
        self.epoch = self._clock = None
        for strategy in self.strategies:
            strategy.main_epoch = None

    def _enter(self, module: StagedModule) -> None:
        """Freeze and unfreeze parameters for the epoch that starts or resumes."""
        self.epoch = module.current_epoch - self.epochs + 1
        if self._clock is None:
            self._clock = torch.zeros((), dtype=torch.int64, device=module.device)
        self._clock.fill_(self.epoch)
        for strategy in self.strategies:
            strategy.main_epoch = self._clock
        if not self.epochs:
            return
        for parameter in module.trainable():
            parameter.requires_grad_(not self.first)
        module.train()
        if self.first:
            module.student.eval()
            module.adapters.eval()
        for strategy in self.strategies:
            adapter = module.adapter_of(strategy)
            if self.first and strategy.pretrain_epochs:
                _set(strategy.pretrain_modules(module.student, adapter), trains=True)
            elif not self.first:
                _set(strategy.frozen_in_main(adapter), trains=False)

    def _restart_optimizer(self, module: StagedModule) -> None:
        for optimizer in module.trainer.optimizers:
            optimizer.state.clear()
            optimizer.zero_grad(set_to_none=True)


def _set(modules: Sequence[nn.Module], trains: bool) -> None:
    for module in modules:
        module.train(trains).requires_grad_(trains)
