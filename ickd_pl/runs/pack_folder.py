"""The files of a packed run: one checkpoint of the pack during training, and a run folder per member."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any, Literal, NamedTuple

import pytorch_lightning as pl
import torch

from ickd_pl.errors import UserError
from ickd_pl.files import replacing, write_text
from ickd_pl.runs.console import warn
from ickd_pl.runs.decide import Asked, differences, stored
from ickd_pl.runs.run_folder import EVALUATION, EpochRecord, RunFolder
from ickd_pl.runs.step import Saver
from ickd_pl.training.finite import not_finite_in
from ickd_pl.weights import read_file


class PackCheckpoint(NamedTuple):
    """A complete checkpoint of a pack.

    Attributes:
        path: of the file.
        content: as read.
    """

    path: Path
    content: dict[str, Any]

    @property
    def names(self) -> list[str]:
        """Names of the members."""
        return [str(name) for name in self.content["ickd_pl_pack"]["names"]]

    @property
    def stopped(self) -> dict[str, str]:
        """The members that were stopped, with the reasons."""
        return dict(self.content["ickd_pl_pack"]["stopped"])

    @property
    def record(self) -> dict[str, Any]:
        """The state of its :class:`PackRecord`."""
        record: dict[str, Any] = self.content["callbacks"][PackRecord.__qualname__]
        return record

    def going(self) -> list[dict[str, Any]]:
        """The records' states of the members that were not stopped."""
        states = zip(self.names, self.record["members"], strict=True)
        return [state for name, state in states if name not in self.stopped]


def newest_pack(path: Path) -> PackCheckpoint | None:
    """The pack's checkpoint, or the previous one if it is damaged or not finite; None if there is none.

    A damaged file is removed with a warning, so that it does not become the previous one.
    """
    for candidate in (path, previous_of(path)):
        if candidate.is_file():
            try:
                found = PackCheckpoint(candidate, read_file(candidate))
                _check_pack(found)
                return found
            except UserError as error:
                warn(f"warning: {candidate} is removed: {error}")
            candidate.unlink()
    return None


def _check_pack(found: PackCheckpoint) -> None:
    try:
        found.going()
        stopped = tuple(f"members.{i}." for i, name in enumerate(found.names) if name in found.stopped)
        weights = {k: v for k, v in found.content["state_dict"].items() if not k.startswith(stopped)}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError("it is not a pack checkpoint") from error
    states = None if stopped else found.content.get("optimizer_states")
    if name := not_finite_in(weights, constants=True) or not_finite_in(states, "optimizer_states"):
        raise UserError(f"it has an infinite or NaN value ({name})")


def members_of(path: Path) -> list[str]:
    """Names of the members in an unfinished pack's checkpoint; empty if there is no complete checkpoint."""
    kept = newest_pack(path)
    return [] if kept is None else kept.names


def decide_pack(
    path: Path, names: Sequence[str], asked: Sequence[Asked]
) -> tuple[Literal["start", "continue", "finished"], PackCheckpoint | None]:
    """Decide how a pack proceeds, as :meth:`RunFolder.decide` does for a run.

    Args:
        path: the pack's checkpoint.
        names: of the members; a checkpoint of others counts as none.
        asked: each member's configuration and inputs.

    Raises:
        UserError: a member has another configuration than in the checkpoint.
    """
    kept = newest_pack(path)
    if kept is None or kept.names != list(names):
        return "start", None
    for name, state, new in zip(names, kept.record["members"], asked, strict=True):
        if found := differences(stored(state), new, kept.path):
            raise UserError(
                f"{kept.path} contains {name} with another configuration: move it away to start again. Differences "
                "(stored -> new):\n  " + "\n  ".join(found)
            )
    ended = all(len(state["rows"]) >= state["planned"] for state in kept.going())
    return "finished" if ended else "continue", kept


class PackRecord(Saver):
    """After every epoch, writes a row to each member's metrics.csv, and the pack's checkpoint.

    At the end every member gets the checkpoint of its solo run (see :func:`member_checkpoint`). The pack's own
    checkpoints are then no longer needed, but not deleted here.

    Args:
        path: the pack's checkpoint.
        folders: the members' run folders.
        configs: the members' whole configurations as plain data; None: they are not written.
        inputs: what :class:`~ickd_pl.runs.decide.Asked` compares besides, of the whole pack.
    """

    def __init__(
        self,
        path: Path,
        folders: Sequence[RunFolder],
        configs: Sequence[dict[str, Any] | None] | None = None,
        inputs: dict[str, Any] | None = None,
    ) -> None:
        self.path = path
        configs = configs if configs is not None else [None] * len(folders)
        self.records = [EpochRecord(folder, config, inputs) for folder, config in zip(folders, configs, strict=True)]

    def target(self) -> tuple[Path, Path | None]:
        return self.path, previous_of(self.path)

    def state_dict(self) -> dict[str, Any]:
        return {"members": [record.state_dict() for record in self.records]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for record, state in zip(self.records, state_dict["members"], strict=True):
            record.load_state_dict(state)

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        for record in self.records:
            record.setup(trainer, pl_module, stage)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        for record in self.records:
            record.on_train_start(trainer, pl_module)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        for record in self.records:
            record.on_train_epoch_start(trainer, pl_module)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        pack: Any = pl_module
        for record, values in zip(self.records, pack.values, strict=True):
            record.evaluation = {name: value for name, value in values.items() if name.startswith(EVALUATION)}

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        pack: Any = pl_module
        active = dict(pack.active())
        for position in active:
            record = self.records[position]
            # Each member's share of the pack's time.
            record.add_row(trainer.current_epoch + 1, pack.values[position], record.seconds() / len(active))
            record.write_rows(trainer)
        self.save(trainer)

    def finish(self, kept: PackCheckpoint) -> None:
        """Write the members' files of a pack that was killed after its last epoch."""
        self.load_state_dict(kept.record)
        going = {i: self.records[i] for i, name in enumerate(kept.names) if name not in kept.stopped}
        write_members(kept.path, going)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        pack: Any = pl_module
        if trainer.is_global_zero and self.path.is_file():
            write_members(self.path, {position: self.records[position] for position, _ in pack.active()})


def previous_of(path: Path) -> Path:
    """The pack's checkpoint before the last one, as a fallback if the last one is corrupt."""
    return path.with_name(f"previous_{path.name}")


def write_members(path: Path, records: dict[int, EpochRecord]) -> None:
    """Write each member's checkpoint, taken from the pack's, and the file that marks its run as finished."""
    content = read_file(path)
    for position, record in records.items():
        with replacing(record.folder.last) as temporary:
            torch.save(member_checkpoint(content, position), temporary)
        write_text(record.folder.finished, f"{record.summary()}\n")


def member_checkpoint(content: dict[str, Any], position: int) -> dict[str, Any]:
    """The checkpoint of the member's solo run, except that the counters of Lightning's loops are the pack's.

    Only resuming needs the counters, and a finished run is never resumed: it is tested, exported and loaded.

    Args:
        content: a checkpoint of a :class:`~ickd_pl.training.pack.Pack` with a :class:`PackRecord`.
        position: index of the member.
    """
    prefix, note = f"members.{position}.", content["ickd_pl_pack"]["members"][position]
    kept = {
        key: value
        for key, value in content.items()
        if key not in ("state_dict", "optimizer_states", "lr_schedulers", "callbacks", "ickd_pl_pack")
    }
    callbacks = {
        key.partition(":")[2]: value for key, value in content["callbacks"].items() if key.startswith(f"{position}:")
    }
    callbacks[EpochRecord.__qualname__] = content["callbacks"][PackRecord.__qualname__]["members"][position]
    return {
        **kept,
        **deepcopy(note),
        "state_dict": {k[len(prefix) :]: v for k, v in content["state_dict"].items() if k.startswith(prefix)},
        "optimizer_states": [_member_optimizer(state, position) for state in content["optimizer_states"]],
        "lr_schedulers": [_member_schedule(state, position) for state in content["lr_schedulers"]],
        "callbacks": callbacks,
    }


def _member_optimizer(state: dict[str, Any], position: int) -> dict[str, Any]:
    group = dict(state["param_groups"][position])
    indices = group["params"]
    group["params"] = list(range(len(indices)))
    own = {new: state["state"][old] for new, old in enumerate(indices) if old in state["state"]}
    return {"state": own, "param_groups": [group]}


def _member_schedule(state: dict[str, Any], position: int) -> dict[str, Any]:
    return {key: [value[position]] if isinstance(value, list) else value for key, value in state.items()}
