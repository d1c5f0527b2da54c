"""The part of the training modules that runs their steps captured, see :mod:`ickd_pl.training.captured`."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from copy import copy
from typing import Any

import pytorch_lightning as pl
from torch import Tensor

from ickd_pl.strategies import LossStrategy
from ickd_pl.training.captured import StepRunner, T, baked, memory, options, start

# Every so many steps the progress bar gets the loss; by prog_bar=True, Lightning would read it after every step.
LOG_EVERY_N_STEPS = 50


class CapturedSteps(pl.LightningModule):
    """The part of a training module that runs its steps captured.

    Attributes:
        captured: runs the steps of the current fit; None: they run as ever.
    """

    captured: StepRunner | None = None
    strategies: list[LossStrategy]
    cuda_graphs: bool
    _raw: Any = None
    _memory: tuple[int, Hashable] = (-1, None)

    @property
    def step_number(self) -> int | Tensor:
        """Number of optimizer steps before the current one: on the device in captured steps."""
        return self.global_step if self.captured is None else self.captured.number

    def side_by_side(self, works: Sequence[Callable[[], T]]) -> list[T]:
        """The results of parts of a step that do not depend on each other; in captured steps computed at once."""
        return [work() for work in works] if self.captured is None else self.captured.side_by_side(works)

    def static(self, raw: Any) -> Any:
        """The batch to compute with: the loader's, or the one of the step that is being recorded."""
        return raw if self.captured is None or self.captured.batch is None else self.captured.batch

    def baked(self) -> Hashable:
        """What a step reads from Python, other than its batch, its number and the optimizer's options."""
        return baked(self)

    def _key(self, optimizer: Any) -> Hashable:
        if self._memory[0] != self.current_epoch:
            self._memory = (self.current_epoch, memory(self))
        return self.baked(), options(optimizer), self._memory[1]

    def show_loss(self, loss: Tensor, batch_idx: int) -> None:
        """Log the loss now and then."""
        if batch_idx % LOG_EVERY_N_STEPS == 0:
            self.log("loss", loss.detach(), logger=False)
            self.trainer.progress_bar_metrics["loss"] = float(loss.detach())  # private: lightning progress_bar_metrics

    def on_fit_start(self) -> None:
        self._memory = (-1, None)
        self.captured = start(self.trainer, self, self.strategies, self.cuda_graphs)

    def on_fit_end(self) -> None:
        self.captured = None

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        self._raw = batch

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
        """Run the whole step, which with automatic optimisation is the closure of the optimizer's step."""
        if self.captured is None or self.trainer.accumulate_grad_batches != 1:
            super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
            return

        def step() -> Any:
            optimizer.step(closure=optimizer_closure)
            found = optimizer_closure.consume_result()
            found.closure_loss = None  # which would keep the step's graph
            return found

        result = copy(self.captured.run(self._raw, self.global_step, self._key(optimizer), step))
        result.loss = result.loss.clone()  # the next step overwrites the recorded one, and callbacks may keep it
        optimizer_closure._result = result  # private: lightning Closure._result

    def manual_step(self, raw: Any, optimizer: Any, compute: Callable[[Any], None]) -> None:
        """Run a whole step with manual optimisation.

        Args:
            raw: the batch.
            optimizer: Lightning's, which counts the steps.
            compute: from a batch to the gradients.
        """
        if self.captured is None:
            compute(raw)
            optimizer.step()
            return

        def step() -> None:
            compute(self.static(raw))
            optimizer.optimizer.step()

        optimizer._on_before_step()  # private: lightning LightningOptimizer._on_before_step
        self.captured.run(raw, self.global_step, self._key(optimizer), step)
        optimizer._on_after_step()  # private: lightning LightningOptimizer._on_after_step

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        self._raw = None
        if self.captured is not None and isinstance(outputs, dict) and "loss" in outputs:
            self.show_loss(outputs["loss"], batch_idx)
