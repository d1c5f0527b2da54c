"""The folder of a run: its files, whether the run starts or resumes, and the metrics of its epochs."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import pytorch_lightning as pl
import yaml
from pytorch_lightning.callbacks import Checkpoint, Timer

from ickd_pl.errors import UserError
from ickd_pl.files import replacing, write_text
from ickd_pl.plain import csv_text, read_yaml
from ickd_pl.runs.checkpoint_io import writing_in_place
from ickd_pl.runs.metrics_file import metric_rows
from ickd_pl.weights.checkpoint import RunCheckpoint, read_checkpoint

# Settings that do not change what a run computes.
_COSMETIC = {
    "config",
    "model.teacher_floor",
    "ckpt_path",
    "weights_only",
    "trainer.default_root_dir",
    "trainer.logger",
    "trainer.callbacks",
    "trainer.enable_progress_bar",
    "trainer.enable_model_summary",
    "trainer.enable_checkpointing",
    "trainer.log_every_n_steps",
    "trainer.profiler",
}


class Decision(NamedTuple):
    """How ``fit`` proceeds with a run folder.

    Attributes:
        state: whether the run starts, continues or is finished.
        checkpoint: the newest intact checkpoint; None if the run starts.
        warning: what is wrong with newer checkpoints, and from which one the run continues; empty if none is damaged.
    """

    state: Literal["start", "continue", "finished"]
    checkpoint: Path | None = None
    warning: str = ""


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

    def decide(self, config: dict[str, Any]) -> Decision:
        """Decide how ``fit`` proceeds. Changes nothing.

        Args:
            config: the run's whole configuration as plain data.

        Raises:
            UserError: the folder contains a run with another configuration (the message lists the differences), or
                none of its checkpoints can be read.
        """
        if not (self.last.exists() or self.previous.exists()):
            return Decision("start")
        try:
            stored = read_yaml(self.config)
        except (OSError, ValueError) as error:
            raise UserError(f"{self.config} cannot be read ({error}): move {self.path} away to start again") from error
        differences = differing(flat(stored), flat(config))
        if differences:
            raise UserError(
                f"{self.path} contains a run with another configuration: set --trainer.default_root_dir to another "
                "folder, or move this one away. Differences (stored -> new):\n  " + "\n  ".join(differences)
            )
        problems: list[str] = []
        for path in (self.last, self.previous):
            try:
                record = _record_of(path)
            except UserError as error:
                if path.exists() or path == self.last:
                    problems.append(f"{path} {error}")
                continue
            ended = 0 < record.planned <= len(record.rows) or (path == self.last and self.finished.is_file())
            epoch = int(record.rows[-1]["epoch"])
            warning = f"{'; '.join(problems)}; continuing from {path} (epoch {epoch})" if problems else ""
            return Decision("finished" if ended else "continue", path, warning)
        raise UserError(
            f"checkpoint {self.last} cannot be continued: {'; '.join(problems)}; move {self.path} away to start again"
        )


def folder_of(checkpoint: Path) -> Path:
    """The run folder of a checkpoint, or the file's own folder if it is not in a run folder."""
    parent = checkpoint.parent
    return parent.parent if parent.name == "checkpoints" else parent


class EpochRecord(Checkpoint):
    """Writes the run folder: after every epoch, a row of metrics.csv and ``checkpoints/last.ckpt``.

    The checkpoint before it is kept as ``previous.ckpt``, as a fallback if ``last.ckpt`` is corrupt.

    The rows are also stored in the checkpoint, so that a resumed run cuts metrics.csv back to the checkpoint's epoch.
    ``checkpoints/best.ckpt`` is written only with a validation split: the test set selects nothing.
    """

    def __init__(self, folder: RunFolder, config: dict[str, Any] | None = None) -> None:
        self.folder = folder
        self.config = config
        self.rows: list[dict[str, float]] = []
        self.planned = 1
        self._began = 0.0
        self._evaluated = False
        self._last_is_whole = False

    def state_dict(self) -> dict[str, Any]:
        return {"rows": self.rows, "planned": self.planned}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.rows = list(state_dict["rows"])

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if stage == "fit" and trainer.is_global_zero and self.config is not None:
            for left in self.folder.path.rglob(".*.tmp"):  # left by a run that was killed while writing
                left.unlink(missing_ok=True)
            write_text(self.folder.config, yaml.safe_dump(self.config, sort_keys=False))
            self.folder.finished.unlink(missing_ok=True)  # its checkpoint is gone

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.planned = trainer.max_epochs or 1
        self._write_rows(trainer)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._began = time.perf_counter()
        self._evaluated = False

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._evaluated = True

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # Lightning stores metrics in float32, which is worth six digits. It also keeps those of the last evaluation,
        # which may be some epochs old.
        stale = ("loss",) if self._evaluated else ("loss", "val/", "test/")
        metrics = {k: float(f"{float(v):.6g}") for k, v in trainer.callback_metrics.items() if not _is_one(k, stale)}
        seconds = round(time.perf_counter() - self._began, 3)
        # Main epochs count from 1; the last first-stage epoch is 0.
        epoch = trainer.current_epoch + 1 - getattr(getattr(pl_module, "stages", None), "epochs", 0)
        self.rows.append({"epoch": epoch, **dict(sorted(metrics.items())), "seconds": seconds})
        # last.ckpt is written last: if the run is killed before that, the resumed run repeats the epoch.
        self._write_rows(trainer)
        if self._is_best():
            self._save(trainer, self.folder.last.with_name("best.ckpt"))
        self._save(trainer, self.folder.last, self._to_keep(trainer))
        self._last_is_whole = True

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

    def _save(self, trainer: pl.Trainer, path: Path, keep: Path | None = None) -> None:
        if not trainer.is_global_zero:
            trainer.save_checkpoint(path, weights_only=False)  # a collective call on all ranks; only rank 0 writes
            return
        with replacing(path, keep) as temporary, writing_in_place(trainer.strategy):
            trainer.save_checkpoint(temporary, weights_only=False)

    def _to_keep(self, trainer: pl.Trainer) -> Path | None:
        """The new path of the old last.ckpt; None if it is corrupt, so that it does not replace an intact one."""
        if trainer.is_global_zero and not self._last_is_whole and self.folder.last.is_file():
            try:
                _record_of(self.folder.last)
            except UserError:
                return None
        return self.folder.previous

    def _is_best(self) -> bool:
        chosen = [row["val/acc1"] for row in self.rows if "val/acc1" in row]
        return bool(chosen) and "val/acc1" in self.rows[-1] and chosen[-1] >= max(chosen)

    def _write_rows(self, trainer: pl.Trainer) -> None:
        if trainer.is_global_zero and self.rows:
            columns = list(dict.fromkeys(column for row in self.rows for column in row))
            rows = ([row.get(column, "") for column in columns] for row in self.rows)
            write_text(self.folder.metrics, csv_text([columns, *rows]))


def _record_of(path: Path) -> RunCheckpoint:
    """Read a checkpoint that a run can resume from, and check all of the file.

    Raises:
        UserError: what is wrong with the file; the message does not contain its name.
    """
    if not path.exists():
        raise UserError("is missing")
    try:
        checkpoint = read_checkpoint(path)
    except UserError as error:
        text = str(error)
        raise UserError(
            text.removeprefix(f"weights file {path} ").partition(": ")[0]
            if text.startswith("weights file")
            else text.removeprefix(f"{path}: ").removeprefix(f"{path} ")
        ) from error
    if not checkpoint.rows or not checkpoint.planned:
        raise UserError("is not a checkpoint of a run")
    return checkpoint


def _is_one(name: str, kinds: tuple[str, ...]) -> bool:
    """Whether a metric matches one of these: a name, or a prefix that ends with a slash."""
    return any(name == kind or (kind.endswith("/") and name.startswith(kind)) for kind in kinds)


def flat(config: Any, prefix: str = "") -> dict[str, Any]:
    """Flatten nested settings to dotted names, without those that do not change what a run computes."""
    items: list[tuple[str, Any]]
    if isinstance(config, dict):
        items = [(f"{prefix}.{key}" if prefix else str(key), value) for key, value in config.items()]
    elif isinstance(config, list) and any(isinstance(value, dict) for value in config):
        items = [(f"{prefix}[{i}]", value) for i, value in enumerate(config)]
    else:
        return {prefix: config}
    found: dict[str, Any] = {}
    for name, value in items:
        if name not in _COSMETIC:
            found.update(flat(value, name))
    return found


def differing(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Differences between two flattened settings, as ``name: old -> new``."""
    # A missing setting equals null: another version of Lightning may have more settings.
    return [
        f"{key}: {old.get(key)} -> {new.get(key)}"
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key)
    ]
