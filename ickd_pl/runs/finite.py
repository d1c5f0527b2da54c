"""Stops a fit in which something became infinite or NaN, and keeps such weights out of the checkpoints."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
import torch

from ickd_pl.errors import NonFiniteLoss
from ickd_pl.runs.agreement import Agreed
from ickd_pl.training.finite import Finite, first_of, has_scaler, is_finite_on_cpu, non_finite, not_finite_in
from ickd_pl.training.metrics import gathered


class FiniteGuard(Agreed):
    """Raises :class:`~ickd_pl.errors.NonFiniteLoss` on all ranks after the first loss or gradient that is not finite.

    On a CPU this is before the update of that step. On a GPU it is within two seconds, without a wait in every step;
    until then bad gradients are set to zero on the device. Modules of this package name the loss term; for any other
    module, its loss and its gradients are watched.
    """

    outside_steps = True  # its hooks within a step do nothing for modules of this package, whose steps may be captured

    def __init__(self) -> None:
        self._finite = Finite()
        self._watches = True
        self._scaled = False

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._finite = Finite()
        # Asked once, as both take time in a short step.
        self._watches = not hasattr(pl_module, "check_finite")
        self._scaled = has_scaler(trainer)

    def on_before_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule, loss: torch.Tensor) -> None:
        if self._watches and not is_finite_on_cpu(loss):
            self._finite.terms(["the loss"], loss.detach().float().reshape(1), trainer.global_step)

    def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Any) -> None:
        if not self._watches or self._scaled:
            return
        parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        if all(is_finite_on_cpu(parameter.grad) for parameter in parameters):
            return
        if self._finite.gradients(parameters, trainer.global_step):
            self._check(trainer, pl_module)

    def act(self, trainer: pl.Trainer, pl_module: pl.LightningModule, agreed: float) -> None:
        if trainer.strategy.root_device.type != "cpu":
            self._check(trainer, pl_module)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._check(trainer, pl_module)

    def _check(self, trainer: pl.Trainer, pl_module: Any) -> None:
        if hasattr(pl_module, "check_finite"):
            pl_module.check_finite()
            return
        found = gathered(self._finite.bad(), trainer)
        if (first := first_of(found)) is not None:
            raise non_finite(first[1], first[0], len(found), trainer.current_epoch + 1)


def check_before_saving(trainer: pl.Trainer) -> None:
    """Check everything that a checkpoint of the run would contain. Call it on all ranks.

    A member of a pack whose weights are not finite is stopped, and the others continue.

    Raises:
        NonFiniteLoss: a loss, gradient, weight or state of the optimizer is infinite or NaN.
    """
    module: Any = trainer.lightning_module
    if hasattr(module, "check_finite"):
        module.check_finite()
    for name, part in (
        [(module.names[i], m) for i, m in module.active()] if hasattr(module, "active") else [("", module)]
    ):
        found = gathered(_not_finite(trainer, part), trainer)
        rank = next((rank for rank, each in enumerate(found) if each), None)
        if rank is None:
            continue
        where = f" on rank {rank}" if len(found) > 1 else ""
        error = NonFiniteLoss(
            f"{name and f'{name}: '}{found[rank]} became infinite or NaN by step {trainer.global_step} (epoch "
            f"{trainer.current_epoch + 1}){where}; no checkpoint contains it: lower model.lr",
            rank,
        )
        if not name:
            raise error
        module.stop_member(name, error)


def _not_finite(trainer: pl.Trainer, module: torch.nn.Module) -> str | None:
    name = not_finite_in(dict(module.named_parameters())) or not_finite_in(dict(module.named_buffers()), constants=True)
    if name is not None:
        return name
    for optimizer in trainer.optimizers:
        for key, parameter in module.named_parameters():
            if (name := not_finite_in(optimizer.state.get(parameter, {}))) is not None:
                return f"{name} of {key}"
    return None
