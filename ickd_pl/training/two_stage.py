"""The first stage of a two-stage method, inside one fit: which epochs, which parameters, which mode."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import pytorch_lightning as pl
from pytorch_lightning.strategies import DDPStrategy
from torch import nn

from ickd_pl.errors import UserError
from ickd_pl.strategies import LossStrategy


class Staged(Protocol):
    """What is asked here of a :class:`ickd_pl.DistillationModule`."""

    @property
    def trainer(self) -> pl.Trainer: ...

    @property
    def current_epoch(self) -> int: ...

    @property
    def student(self) -> nn.Module: ...

    @property
    def adapters(self) -> nn.ModuleDict: ...

    def adapter_of(self, strategy: LossStrategy) -> nn.Module | None: ...

    def trainable(self) -> Iterator[nn.Parameter]: ...

    def train(self, mode: bool = True) -> nn.Module: ...


class Stages:
    """Knows whether the current epoch belongs to the first stage, and puts the module into the state it needs.

    ``max_epochs`` counts main epochs. First-stage epochs come before them and have negative numbers in the order of
    the data, so that two-stage and one-stage runs see the same batches in their main epochs.

    Args:
        strategies: the module's methods.
        student: the student's name, on which a method's first learning rate may depend.

    Raises:
        UserError: two methods want first stages of different lengths.
    """

    def __init__(self, strategies: Sequence[LossStrategy], student: str) -> None:
        lengths = {s.pretrain_epochs for s in strategies if s.pretrain_epochs}
        if len(lengths) > 1:
            names = ", ".join(f"{type(s).__name__} {s.pretrain_epochs}" for s in strategies if s.pretrain_epochs)
            raise UserError(
                f"first stages of different lengths cannot run together ({names}): give them the same pretrain_epochs"
            )
        self.strategies = strategies
        self.student = student
        self.epochs = max(lengths, default=0)
        self.first = False
        self._extended: pl.Trainer | None = None

    def lr(self, recipe: float) -> float:
        """Constant learning rate of the first stage; the recipe's where the method names none."""
        named = [s.first_stage_lr(self.student) for s in self.strategies if s.pretrain_epochs]
        own = [lr for lr in named if lr is not None]
        return own[0] if own else recipe

    def extend(self, trainer: pl.Trainer) -> None:
        """Add the first stage to ``max_epochs``; parts of the student idle in it, which DDP must be told."""
        if not self.epochs or self._extended is trainer:
            return
        self._extended = trainer
        # private: lightning fit_loop.max_epochs
        if trainer.fit_loop.max_epochs not in (None, -1):
            trainer.fit_loop.max_epochs += self.epochs
        if isinstance(trainer.strategy, DDPStrategy):
            # private: lightning strategy._ddp_kwargs
            trainer.strategy._ddp_kwargs["find_unused_parameters"] = True

    def offset_loader(self, trainer: pl.Trainer) -> None:
        """Let the order of the data count main epochs from 0."""
        loader: Any = trainer.train_dataloader
        if hasattr(loader, "epoch_offset"):
            loader.epoch_offset = -self.epochs

    def enter(self, module: Staged) -> None:
        """Freeze and thaw for the epoch that begins or is continued."""
        if not self.epochs:
            return
        self.first = module.current_epoch < self.epochs
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

    def restart_optimizer(self, module: Staged) -> None:
        """At the beginning of the first main epoch the optimizer starts anew."""
        if self.epochs and module.current_epoch == self.epochs:
            for optimizer in module.trainer.optimizers:
                optimizer.state.clear()
                optimizer.zero_grad(set_to_none=True)


def _set(modules: Sequence[nn.Module], trains: bool) -> None:
    for module in modules:
        module.train(trains).requires_grad_(trains)
