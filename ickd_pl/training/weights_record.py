"""The weights of a run are what its record says, also where a callback changes them.

The frozen teacher stays as it was read. The student's weights whose accuracy is in metrics.csv are those that the
checkpoint of that epoch holds, and, after the last epoch, those that the module is left with. What the weights had been
trained before the fit is counted, and a fit's best accuracy is its own.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from ickd_pl.errors import UserError
from ickd_pl.models.deployed import Head
from ickd_pl.training.in_force import RecordedModule
from ickd_pl.training.settings_record import SettingsRecord, changed_by


class WeightsRecord(pl.Callback):
    """Refuses to go on with weights that are not those of the record.

    It comes after the user's callbacks in every hook. It copies the student at every evaluation, and reads a
    teacher's weights only where its tensors were written to.

    Args:
        module: whose networks are compared.
        prefix: of the module's weights in a checkpoint: ``members.0.`` for a member of a pack.

    Raises:
        UserError: in the hooks: a callback changed the teacher, or the student after its evaluation.
    """

    def __init__(self, module: RecordedModule, prefix: str = "") -> None:
        self._module, self._prefix = module, prefix
        self._written: list[tuple[int, int]] = []
        self._digest = ""
        self._evaluated: dict[str, Tensor] = {}

    def setup(self, trainer: pl.Trainer, pl_module: Any, stage: str) -> None:
        # A new fit; where it resumes a checkpoint, that is read later. A trainer's second call of fit goes on.
        if trainer.current_epoch == 0 and trainer.global_step == 0:
            self._module.trained_before, self._module.best_acc1 = self._module.trained_steps, 0.0
            self._module.metrics.reset()  # of an evaluation that was interrupted

    def on_fit_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        if self._module.teacher is not None:
            self._written, self._digest = _writes(self._module.teacher), _digest(self._module.teacher)

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self._check_teacher(trainer)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self._check_teacher(trainer)

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self._evaluated = {}  # training changes them

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self._module.trained_steps = self._module.trained_before + trainer.global_step

    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._evaluated = {key: value.clone() for key, value in self._predicting().items()}

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self._check_teacher(trainer)

    def on_save_checkpoint(self, trainer: pl.Trainer, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        self._compare(trainer, checkpoint["state_dict"], self._prefix)

    def on_train_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self._compare(trainer, self._predicting(), "")

    def _predicting(self) -> dict[str, Tensor]:
        """The weights that made the evaluation, by their keys in the module."""
        heads = {f"adapters.{key}": part for key, part in self._module.adapters.items() if isinstance(part, Head)}
        parts = {"student": self._module.student, **heads}
        return {f"{name}.{key}": v for name, part in parts.items() for key, v in part.state_dict().items()}

    def _check_teacher(self, trainer: pl.Trainer) -> None:
        teacher = self._module.teacher
        if teacher is None or (written := _writes(teacher)) == self._written:
            return
        if _digest(teacher) != self._digest:
            what = "the weights or statistics of the frozen teacher"
            raise UserError(f"{changed_by(trainer)} changed {what}: remove it, or let it leave model.teacher as it is")
        self._written = written

    def _compare(self, trainer: pl.Trainer, state: Mapping[str, Any], prefix: str) -> None:
        # Rank 0 has what is saved: the others get its batch norm statistics with the first batch of an evaluation.
        for key, value in self._evaluated.items() if trainer.is_global_zero else ():
            other = state.get(f"{prefix}{key}")
            # NaN equals NaN: a member of a pack that was stopped keeps it.
            if not isinstance(other, Tensor) or not _equal(other.to(value.device), value):
                name = key.removeprefix("student.")
                raise UserError(
                    f"{changed_by(trainer)} changed the student's {name} after its evaluation, and the accuracy in the "
                    "record would not be that of its weights: remove it, or let it change weights before the evaluation"
                )


def keepers(trainer: pl.Trainer, module: RecordedModule, prefix: str = "") -> list[pl.Callback]:
    """The callbacks that keep the record of a ``fit`` true; none for another function of the trainer.

    Args:
        trainer: that is about to run.
        module: the module, or a member of a pack.
        prefix: as for :class:`WeightsRecord`.
    """
    return [SettingsRecord(trainer, module), WeightsRecord(module, prefix)] if trainer.state.fn == "fit" else []


def _tensors(net: nn.Module) -> list[Tensor]:
    return [*net.parameters(), *net.buffers()]


def _equal(one: Tensor, other: Tensor) -> bool:
    return torch.equal(one, other) or (one.shape == other.shape and torch.allclose(one, other, 0, 0, equal_nan=True))


def _writes(net: nn.Module) -> list[tuple[int, int]]:
    """Changes when a tensor is replaced or written to."""
    # private: torch Tensor._version
    return [(id(tensor), 0 if tensor.is_inference() else tensor._version) for tensor in _tensors(net)]


def _digest(net: nn.Module) -> str:
    """A hash of the names and values of a network's tensors."""
    digest = hashlib.sha256()
    for name, tensor in net.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().reshape(-1).contiguous().view(torch.uint8).numpy())
    return digest.hexdigest()
