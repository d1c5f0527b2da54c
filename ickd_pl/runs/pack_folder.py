"""The files of a packed run: one checkpoint of the pack during training, and a run folder per member."""

from __future__ import annotations

import time
from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Checkpoint

from ickd_pl.files import replacing, write_text
from ickd_pl.runs.run_folder import EpochRecord, RunFolder
from ickd_pl.weights import read_file


class PackRecord(Checkpoint):
    """After every epoch, writes a row to each member's metrics.csv, and the pack's checkpoint.

    At the end every member gets the checkpoint of its solo run (see :func:`member_checkpoint`). The pack's own
    checkpoints are then no longer needed, but not deleted here.

    Args:
        path: the pack's checkpoint.
        folders: the members' run folders.
        configs: the members' whole configurations as plain data; None: they are not written.
    """

    def __init__(
        self, path: Path, folders: Sequence[RunFolder], configs: Sequence[dict[str, Any] | None] | None = None
    ) -> None:
        self.path = path
        configs = configs if configs is not None else [None] * len(folders)
        self.records = [EpochRecord(folder, config) for folder, config in zip(folders, configs, strict=True)]
        self._began = 0.0

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
        self._began = time.perf_counter()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        pack: Any = pl_module
        active = dict(pack.active())
        # Each member's share of the pack's time.
        seconds = round((time.perf_counter() - self._began) / max(1, len(active)), 3)
        for position in active:
            record = self.records[position]
            metrics = {name: float(f"{value:.6g}") for name, value in sorted(pack.values[position].items())}
            record.rows.append({"epoch": trainer.current_epoch + 1, **metrics, "seconds": seconds})
            record._write_rows(trainer)
        self.records[0]._save(trainer, self.path, previous_of(self.path))

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
