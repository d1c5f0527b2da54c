"""The folder of a run: its files, whether the run starts or resumes, and the metrics of its epochs."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Timer

from ickd_pl.errors import UserError
from ickd_pl.files import write_text
from ickd_pl.plain import csv_text, read_yaml
from ickd_pl.runs.decide import Asked, Decision, differences, newest, run_checkpoint, stored
from ickd_pl.runs.machine import Piece, continued, here, pieces_of
from ickd_pl.runs.metrics_file import metric_rows
from ickd_pl.runs.step import Saver
from ickd_pl.runs.written_settings import yaml_text

EVALUATION = ("val/", "test/")
"""Prefixes of an evaluation's metrics."""


@dataclass(frozen=True)
class RunFolder:
    """``<root>/<data>/<pair>/<method>/seed_<n>/`` and the files in it."""

    path: Path

    @classmethod
    def of(cls, root: Path, data: str, teacher: str | None, student: str, methods: list[str], seed: int) -> RunFolder:
        """The folder of a run. Without a teacher, the student's name replaces the pair's."""
        pair = f"{teacher}_{student}" if teacher else student
        return cls(root / data / pair / ("_".join(methods) or "vanilla") / f"seed_{seed}")

    @property
    def config(self) -> Path:
        return self.path / "config.yaml"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.csv"

    @property
    def finished(self) -> Path:
        """Marks a run that ended normally, including early stopping."""
        return self.path / "finished"

    @property
    def last(self) -> Path:
        return self.path / "checkpoints" / "last.ckpt"

    @property
    def previous(self) -> Path:
        """The checkpoint before the last one, as a fallback if that is corrupt."""
        return self.path / "checkpoints" / "previous.ckpt"

    def rows(self) -> list[dict[str, float]]:
        """The rows of ``metrics.csv``, one per epoch, without empty cells.

        Raises:
            UserError: the file is missing or damaged.
        """
        return metric_rows(self.metrics)

    def decide(self, asked: Asked, may_differ: Sequence[str] = ()) -> Decision:
        """Decide how ``fit`` proceeds. Changes nothing.

        Args:
            asked: the run's configuration and inputs.
            may_differ: names of settings and inputs that the user allows to differ.

        Raises:
            UserError: the folder contains a run with another configuration (the message lists the differences), or
                none of its checkpoints can be read.
        """
        if not (self.last.exists() or self.previous.exists()):
            return Decision("start")
        checkpoint, problems = newest((self.last, self.previous))
        if checkpoint is None:
            raise UserError(
                f"checkpoint {self.last} cannot be continued: {'; '.join(problems)}; move {self.path} away to start "
                "again"
            )
        old = stored(checkpoint.record)
        if old.config is None:  # written by version 0.1
            old = Asked(self._config_of_0_1(), old.inputs)
        if found := differences(old, asked, self.path, may_differ):
            world = any(line.startswith("number of processes") for line in found)
            override = " (or set --override_world_size true, which keeps the global batch)" if world else ""
            raise UserError(
                f"{self.path} contains a run with another configuration: set --trainer.default_root_dir to another "
                f"folder, or move this one away{override}. Differences (stored -> new):\n  " + "\n  ".join(found)
            )
        path, rows = checkpoint.path, checkpoint.rows
        ended = 0 < checkpoint.planned <= len(rows) or (path == self.last and self.finished.is_file())
        where = f"epoch {int(rows[-1]['epoch'])}" if rows else "its first epoch"
        warning = f"{'; '.join(problems)}; continuing from {path} ({where})" if problems else ""
        return Decision("finished" if ended else "continue", path, warning)

    def _config_of_0_1(self) -> Any:
        try:
            return read_yaml(self.config)
        except (OSError, ValueError) as error:
            raise UserError(f"{self.config} cannot be read ({error}): move {self.path} away to start again") from error


def folder_of(checkpoint: Path) -> Path:
    """The run folder of a checkpoint, or the file's own folder if it is not in a run folder."""
    parent = checkpoint.parent
    return parent.parent if parent.name == "checkpoints" else parent


class EpochRecord(Saver):
    """Writes the run folder: after every epoch, a row of metrics.csv and ``checkpoints/last.ckpt``.

    The checkpoint before it is kept as ``previous.ckpt``, as a fallback if ``last.ckpt`` is corrupt.

    The rows are also stored in the checkpoint, so that a resumed run cuts metrics.csv back to the checkpoint's epoch.
    ``checkpoints/best.ckpt`` is written only with a validation split: the test set selects nothing.

    Args:
        folder: the run folder.
        config: the run's whole configuration as plain data; None: not written.
        inputs: what :class:`~ickd_pl.runs.decide.Asked` compares besides.
    """

    def __init__(
        self, folder: RunFolder, config: dict[str, Any] | None = None, inputs: dict[str, Any] | None = None
    ) -> None:
        self.folder = folder
        self.config = config
        self.inputs = dict(inputs or {})
        self.rows: list[dict[str, float]] = []
        self.pieces: list[Piece] = []
        self.planned = 1
        self.evaluation: dict[str, float] = {}
        self._began = time.perf_counter()
        self._seconds = 0.0
        self._last_is_whole = False

    def target(self) -> tuple[Path, Path | None]:
        return self.folder.last, self.folder.previous

    def state_dict(self) -> dict[str, Any]:
        return {
            "rows": self.rows,
            "planned": self.planned,
            "config": self.config,
            "inputs": self.inputs,
            "pieces": [asdict(piece) for piece in self.pieces],
            "evaluation": self.evaluation,
            "seconds": self.seconds(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.rows = list(state_dict["rows"])
        self.pieces = pieces_of(state_dict)
        self.evaluation = dict(state_dict.get("evaluation") or {})
        self._seconds = float(state_dict.get("seconds") or 0.0)
        before = state_dict.get("inputs") or {}
        self.inputs = {**self.inputs, **{k: v for k, v in before.items() if k == "global_batch" and v is not None}}
        if "began" in before:  # the checkpoint of another folder with which the run began
            self.inputs.setdefault("began", before["began"])

    def seconds(self) -> float:
        """Seconds that the current epoch has taken, also before the run was stopped in it."""
        return self._seconds + time.perf_counter() - self._began

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if stage == "fit" and trainer.current_epoch == 0:
            self.rows, self.pieces = [], []  # a new run; a checkpoint that it resumes is read later
        if stage == "fit" and trainer.is_global_zero and self.config is not None:
            for left in self.folder.path.rglob(".*.tmp"):  # left by a run that was killed while writing
                left.unlink(missing_ok=True)
            self._write_config()
            self.folder.finished.unlink(missing_ok=True)  # its checkpoint is gone

    def _write_config(self) -> None:
        # With the checkpoint of another folder that the run began with, so that the file repeats the run.
        began = {"ckpt_path": self.inputs["began"]} if "began" in self.inputs else {}
        write_text(self.folder.config, yaml_text({**(self.config or {}), **began}))

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if "began" in self.inputs and trainer.is_global_zero and self.config is not None:
            self._write_config()  # the checkpoint is read now
        self.planned = trainer.max_epochs or 1
        self._began = time.perf_counter()
        self._check_batch(trainer)
        self.write_rows(trainer)
        self.pieces = continued(self.pieces, here(trainer, _epoch(trainer, pl_module)))

    def _check_batch(self, trainer: pl.Trainer) -> None:
        """Refuse to continue with another global batch: the loader of another package counts it per process."""
        loader: Any = trainer.train_dataloader
        size = getattr(loader, "batch_size", None)
        if type(size) is not int:
            return
        size *= 1 if hasattr(loader, "share") else trainer.world_size
        before = self.inputs.setdefault("global_batch", size)
        if before != size:
            raise UserError(
                f"the run had a global batch of {before} images, and would have {size} on {trainer.world_size} "
                "processes: set the batch size so that it stays the same"
            )

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._began, self._seconds = time.perf_counter(), 0.0
        self.evaluation = {}
        self.pieces[-1:] = [replace(piece, last=_epoch(trainer, pl_module)) for piece in self.pieces[-1:]]

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.evaluation = {}  # of weights that are trained on

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        found = {k: float(value) for k, value in trainer.callback_metrics.items() if k.startswith(EVALUATION)}
        self.evaluation = {} if trainer.sanity_checking else found

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # Lightning keeps the metrics of the last evaluation, which may be some epochs old.
        found = {k: float(value) for k, value in trainer.callback_metrics.items() if not k.startswith(EVALUATION)}
        found.pop("loss", None)  # of the progress bar
        self.add_row(_epoch(trainer, pl_module), {**found, **self.evaluation}, self.seconds())
        # last.ckpt is written last: if the run is killed before that, the resumed run repeats the epoch.
        self.write_rows(trainer)
        if self._is_best():
            self.save(trainer, self.folder.last.with_name("best.ckpt"))
        self.save(trainer)

    def add_row(self, epoch: int, metrics: dict[str, float], seconds: float) -> None:
        """Add the row of an epoch, with the six digits that Lightning's float32 metrics are worth."""
        rounded = {name: float(f"{value:.6g}") for name, value in sorted(metrics.items())}
        self.rows.append({"epoch": epoch, **rounded, "seconds": round(seconds, 3)})

    def save(self, trainer: pl.Trainer, path: Path | None = None) -> None:
        if trainer.is_global_zero and not self._last_is_whole and path is None and self.folder.last.is_file():
            try:
                run_checkpoint(self.folder.last)
            except UserError:  # it must not replace an intact one
                self.folder.last.unlink()
        super().save(trainer, path)
        if path is None:
            self._last_is_whole = True
        if trainer.is_global_zero and self.config is not None and not self.folder.config.exists():
            self._write_config()  # deleted meanwhile

    def summary(self) -> str:
        """One line with the last epoch's and the best epoch's accuracy."""
        epochs = int(self.rows[-1]["epoch"])
        for split in ("val", "test"):
            evaluated = [row for row in self.rows if f"{split}/acc1_best" in row]
            if evaluated:
                last = evaluated[-1]
                which = "last epoch" if last is self.rows[-1] else f"epoch {int(last['epoch'])}, the last evaluated,"
                acc1, best = last[f"{split}/acc1"], last[f"{split}/acc1_best"]
                return f"{split} accuracy: {which} {acc1:.2f} (best epoch {best:.2f}) percent after {epochs} epochs"
        return f"{epochs} epochs"

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # A run stopped by Lightning's Timer resumes at the next call.
        out_of_time = any(isinstance(c, Timer) and (c.time_remaining() or 1) <= 0 for c in trainer.callbacks)  # type: ignore[attr-defined]
        if trainer.is_global_zero and self.rows and not out_of_time:
            write_text(self.folder.finished, f"{self.summary()}\n")

    def _is_best(self) -> bool:
        chosen = [row["val/acc1"] for row in self.rows if "val/acc1" in row]
        return bool(chosen) and "val/acc1" in self.rows[-1] and chosen[-1] >= max(chosen)

    def write_rows(self, trainer: pl.Trainer) -> None:
        """Write metrics.csv, on rank 0."""
        if trainer.is_global_zero and self.rows:
            columns = list(dict.fromkeys(column for row in self.rows for column in row))
            rows = ([row.get(column, "") for column in columns] for row in self.rows)
            write_text(self.folder.metrics, csv_text([columns, *rows]))


def _epoch(trainer: pl.Trainer, module: pl.LightningModule) -> int:
    """The number of the epoch: main epochs count from 1; the last first-stage epoch is 0."""
    return int(trainer.current_epoch + 1 - getattr(getattr(module, "stages", None), "epochs", 0))
