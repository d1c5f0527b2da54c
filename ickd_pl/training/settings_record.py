"""The record of a run is what happened, also where a callback changes what the run computes with.

The record is config.yaml, the checkpoint's hyper-parameters and metrics.csv. Two callbacks, which the module attaches
to every ``fit``, compare it with what is in force: :class:`SettingsRecord` here, and
:class:`~ickd_pl.training.weights_record.WeightsRecord`. They know no list of callbacks. The rules for settings:

1. Before the first step, everything in force is what the record says. What a callback has changed by then (a learning
   rate or batch size that it found) is refused in one line with the new value, to be given as the setting instead.
2. During training a callback may change a number that takes effect at once: the optimizer's options, the Trainer's, the
   weight of the cross entropy, an argument of a method. metrics.csv has the learning rate of each epoch in ``lr``, and
   every other setting from its first change on in a column ``set/NAME``: the value at the epoch's first step. From
   the first time that the last step of an epoch has another value on, ``NAME_end`` is that of the last steps. A
   checkpoint keeps changed values, and a resumed run uses them.
3. A change during training that the checkpoint would record and that has no effect (of a hyper-parameter or an
   argument of the data), and one that is not a number, is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning import callbacks as lightning
from pytorch_lightning.utilities import rank_zero_warn

from ickd_pl.checks import short
from ickd_pl.errors import UserError
from ickd_pl.training.in_force import (
    RecordedModule,
    column,
    is_number,
    numbers,
    of_trainer,
    options_recorded,
    said,
    same,
    set_again,
    used,
    write_down,
)
from ickd_pl.training.speed import UNSET

# Callbacks that change nothing: they are not named as the cause of a change.
_READERS = (
    *(lightning.Checkpoint, lightning.DeviceStatsMonitor, lightning.EarlyStopping, lightning.LearningRateMonitor),
    *(lightning.ModelSummary, lightning.ProgressBar, lightning.Timer),
)
_FINDERS = (lightning.BatchSizeFinder, lightning.LearningRateFinder)
_AS_SETTING = "remove it, and if the new value is wanted, set {} to {}"
_IGNORED = "during training, where the run does not use it"
_INSTEAD = "set what is in force instead, such as the optimizer's groups, or remove it"


class SettingsRecord(pl.Callback):
    """Compares the settings in force with the recorded ones, and records the changes; the rules are at the top.

    It is made before any hook of the fit has run, and comes after the user's callbacks in every hook.

    Args:
        trainer: of the fit.
        module: whose settings are compared; its ``in_force`` gets the columns of metrics.csv.

    Raises:
        UserError: in the hooks, where the record would not be what happened.
    """

    def __init__(self, trainer: pl.Trainer, module: RecordedModule) -> None:
        self._trainer, self._module = trainer, module
        write_down(trainer, module)
        self._said = said(trainer, module)
        self._planned = of_trainer(trainer, module)
        self._options: dict[str, Any] = {}  # of the optimizer, as recorded
        self._columns: set[str] = set()
        self._ends: set[str] = set()
        self._first: dict[str, Any] = {}  # in force at the first step of the epoch; empty outside of training
        self._state: dict[str, Any] = {}  # of the checkpoint that the run continues

    def on_fit_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self._options = options_recorded(trainer, self._module)
        # A checkpoint that is older than a setting sets it.
        hparams = self._module.hparams
        self._said.update({f"model.{name}": hparams[name] for name in UNSET if name in hparams})
        # Before the data loaders are made. Lightning restores the optimizer's options.
        if self._state:
            known = self._recorded()
            self._state["changed"] = {name: v for name, v in self._state["changed"].items() if name in known}
        for name, value in self._state.get("changed", {}).items():
            set_again(trainer, self._module, name, value)

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        step = self._state.get("step", trainer.global_step)
        if step != trainer.global_step:
            what = f"the step from which the run continues from {step} to {trainer.global_step}"
            raise UserError(f"{changed_by(trainer)} changed {what}: remove it to continue the run")
        self._check_said("before training", _AS_SETTING)
        recorded = {**self._recorded(), **self._state.get("changed", {})}
        if not self._state and trainer.current_epoch == 0:
            recorded["model.lr"] = self._options["model.lr"]
        now = used(trainer, self._module)
        for name, value in now.items():
            if name in recorded and not same(recorded[name], value):
                self._refuse(name, recorded[name], value, "before training", _AS_SETTING)
        self._columns &= now.keys()
        self._start_epoch()
        if self._state:
            # Lightning skips on_train_epoch_start where it resumes within an epoch: then this is the epoch's row.
            first = {**self._recorded(), **self._state["first"]}
            self._first.update({name: value for name, value in first.items() if name in now})
            self._begin_row()
            known = [column(name) + end for name in ("model.lr", *self._columns) for end in ("", "_end")]
            self._module.in_force.update({k: v for k, v in self._state["row"].items() if k in known})
            self._ends = {name for name in ("model.lr", *self._columns) if f"{column(name)}_end" in self._state["row"]}

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self._start_epoch()

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if not trainer.is_last_batch:
            return
        now = used(trainer, self._module)
        changed = {name: value for name, value in now.items() if not same(self._first.get(name, value), value)}
        self._note({name: value for name, value in changed.items() if name != "model.lr"})
        self._ends |= changed.keys()
        for name in self._ends & now.keys():  # from the first time on in every epoch, as Lightning keeps old values
            self._module.in_force.setdefault(column(name), float(self._first[name]))
            self._module.in_force[f"{column(name)}_end"] = float(now[name])

    def on_save_checkpoint(self, trainer: pl.Trainer, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        if self._first:
            self._check_said(_IGNORED, _INSTEAD)

    def on_train_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self._first = {}

    def state_dict(self) -> dict[str, Any]:
        """The changed values and the columns; empty outside of training."""
        if not self._first:
            return {}
        now = used(self._trainer, self._module)
        return {
            "step": self._trainer.global_step,
            "changed": {name: value for name, value in self._differences(now).items() if is_number(value)},
            "columns": sorted(self._columns),
            "first": numbers({**self._differences(self._first), "model.lr": self._first["model.lr"]}),
            "row": dict(self._module.in_force),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep what a checkpoint says for the start of training, where names that are no setting are left out."""
        maps = {part: numbers(state_dict.get(part)) for part in ("changed", "first", "row")}
        columns, step = state_dict.get("columns"), state_dict.get("step")
        if type(step) is int and isinstance(columns, list):
            self._state = {**maps, "step": step}
            self._columns = set(map(str, columns))
            self._leave_out_finders()

    def _leave_out_finders(self) -> None:
        """A run that continues keeps what it began with; a search would also lose the place where it continues."""
        callbacks: list[pl.Callback] = self._trainer.callbacks  # type: ignore[attr-defined]
        if finders := [callback for callback in callbacks if type(callback) in _FINDERS]:
            names = ", ".join(type(callback).__name__ for callback in finders)
            rank_zero_warn(f"{names} is left out: the run continues with the values with which it began")
            self._trainer.callbacks = [c for c in callbacks if c not in finders]  # type: ignore[attr-defined]

    def _start_epoch(self) -> None:
        self._check_said(_IGNORED, _INSTEAD)
        self._first = used(self._trainer, self._module)
        self._note(self._differences(self._first))
        self._begin_row()

    def _begin_row(self) -> None:
        row = {column(name): self._first[name] for name in ["model.lr", *sorted(self._columns)]}
        self._module.in_force = {name: float(value) for name, value in row.items()}

    def _recorded(self) -> dict[str, Any]:
        """What the record says, by the names of ``used``; not the learning rate, which always has its column."""
        module = self._module
        found = {f"model.{name}": value for name, value in module.hparams.items() if name != "strategies"}
        for key, spec in zip(module.keys, module.hparams["strategies"], strict=True):
            found.update({f"model.{key}.{name}": value for name, value in spec["init_args"].items()})
        found.update(self._options)
        found.update(self._planned)
        prefix = "data.hparams."
        found.update({f"data.{n.removeprefix(prefix)}": v for n, v in self._said.items() if n.startswith(prefix)})
        return {name: value for name, value in found.items() if name != "model.lr"}

    def _differences(self, used: Mapping[str, Any]) -> dict[str, Any]:
        recorded = self._recorded()
        return {name: v for name, v in used.items() if name in recorded and not same(recorded[name], v)}

    def _note(self, changed: Mapping[str, Any]) -> None:
        """Give each changed setting a column of metrics.csv."""
        for name, value in changed.items():
            old = self._recorded().get(name)
            if not is_number(value):
                self._refuse(name, old, value, "during training", "only a number can be recorded; remove it")
            if name not in self._columns:
                self._columns.add(name)
                rank_zero_warn(
                    f"{changed_by(self._trainer)} changed {name} from {short(old)} to {short(value)}: "
                    f"metrics.csv has its values in the column {column(name)}"
                )

    def _check_said(self, when: str, advice: str) -> None:
        """Refuse a hyper-parameter of the module or of the data that is not what it was when the fit began."""
        for name, value in said(self._trainer, self._module).items():
            if not same(self._said.get(name), value):
                self._refuse(name, self._said.get(name), value, when, advice)

    def _refuse(self, name: str, old: Any, new: Any, when: str, advice: str) -> None:
        name = name.replace(".hparams", "")
        raise UserError(
            f"{changed_by(self._trainer)} changed {name} from {short(old)} to {short(new)} {when}, and the record of "
            f"the run would not say so: {advice.format(name, short(new))}"
        )


def changed_by(trainer: pl.Trainer) -> str:
    """Names of the callbacks that may have changed something, for a message."""
    own = [c for c in trainer.callbacks if not type(c).__module__.startswith("ickd_pl.")]  # type: ignore[attr-defined]
    names = [type(callback).__name__ for callback in own if not isinstance(callback, _READERS)]
    return " or ".join(dict.fromkeys(names)) or "a method"
