"""One folder per run: what it holds, when a run continues, and the record of its epochs."""

from __future__ import annotations

import csv
import io
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import pytorch_lightning as pl
import yaml
from pytorch_lightning.callbacks import Checkpoint, Timer

from ickd_pl.errors import UserError
from ickd_pl.files import replacing, write_text
from ickd_pl.runs.checkpoint_io import writing_in_place
from ickd_pl.weights.checkpoint import RunCheckpoint, read_checkpoint

# Settings that change how a run is shown, not what it computes.
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
    """What ``fit`` has to do with a run folder.

    Attributes:
        state: of the run.
        checkpoint: the newest whole one; None where the run starts.
        warning: what is wrong with the newer ones, and from where the run goes on; empty where nothing is.
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
        """The folder of a run. A network without a teacher stands alone in place of the pair."""
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
        """Marks a run that ended by itself, also before its last planned epoch (early stopping)."""
        return self.path / "finished"

    @property
    def last(self) -> Path:
        return self.path / "checkpoints" / "last.ckpt"

    @property
    def previous(self) -> Path:
        """The checkpoint before the last one: what is left where that is damaged."""
        return self.path / "checkpoints" / "previous.ckpt"

    def rows(self) -> list[dict[str, float]]:
        """The rows of ``metrics.csv``, one per epoch, without cells that are empty.

        Raises:
            OSError: it cannot be read.
            ValueError: a cell is no number.
        """
        with self.metrics.open(newline="", encoding="utf-8") as file:
            return [{k: float(v) for k, v in row.items() if v not in ("", None)} for row in csv.DictReader(file)]

    def decide(self, config: dict[str, Any]) -> Decision:
        """What ``fit`` has to do here. Changes nothing.

        Args:
            config: the run's whole configuration, plain data.

        Raises:
            UserError: the folder holds a run of another configuration (the message lists what differs), or none of its
                checkpoints can be read.
        """
        if not (self.last.exists() or self.previous.exists()):
            return Decision("start")
        try:
            kept = yaml.safe_load(self.config.read_text(encoding="utf-8"))
        except (OSError, yaml.YAMLError) as error:
            raise UserError(f"{self.config} cannot be read ({error}): move {self.path} away to start anew") from error
        differences = differing(flat(kept), flat(config))
        if differences:
            raise UserError(
                f"{self.path} holds a run of another configuration; give --trainer.default_root_dir another folder, or "
                "move this one away. What differs (there -> now):\n  " + "\n  ".join(differences)
            )
        wrong: list[str] = []
        for path in (self.last, self.previous):
            try:
                record = _record_of(path)
            except UserError as error:
                if path.exists() or path == self.last:
                    wrong.append(f"{path} {error}")
                continue
            ended = 0 < record.planned <= len(record.rows) or (path == self.last and self.finished.is_file())
            warning = (
                f"{'; '.join(wrong)}; continuing from {path} (epoch {int(record.rows[-1]['epoch'])})" if wrong else ""
            )
            return Decision("finished" if ended else "continue", path, warning)
        raise UserError(
            f"checkpoint {self.last} cannot be continued: {'; '.join(wrong)}; move {self.path} away to start anew"
        )


class EpochRecord(Checkpoint):
    """Writes the run folder: after every epoch a row of metrics.csv and ``checkpoints/last.ckpt``.

    The checkpoint before it stays as ``previous.ckpt``, for the day on which the last one turns out to be damaged.

    The rows are also in the checkpoint, so that a continued run's metrics.csv is cut back to where its weights are.
    ``checkpoints/best.ckpt`` is written only where a validation split chooses it: the test set chooses nothing.
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
            for left in self.folder.path.rglob(".*.tmp"):  # by a run that was killed while it wrote
                left.unlink(missing_ok=True)
            write_text(self.folder.config, yaml.safe_dump(self.config, sort_keys=False))
            self.folder.finished.unlink(missing_ok=True)  # of an end whose checkpoint is gone

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.planned = trainer.fit_loop.max_epochs or 1
        self._write_rows(trainer)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._began = time.perf_counter()
        self._evaluated = False

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._evaluated = True

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # Lightning keeps metrics in float32: six digits are what they are worth. It also keeps those of the last
        # evaluation, which may have been epochs ago.
        stale = ("loss",) if self._evaluated else ("loss", "val/", "test/")
        metrics = {k: float(f"{float(v):.6g}") for k, v in trainer.callback_metrics.items() if not _is_one(k, stale)}
        seconds = round(time.perf_counter() - self._began, 3)
        # Main epochs count from 1; those of a first stage end at 0.
        epoch = trainer.current_epoch + 1 - getattr(getattr(pl_module, "stages", None), "epochs", 0)
        self.rows.append({"epoch": epoch, **dict(sorted(metrics.items())), "seconds": seconds})
        # last.ckpt comes last: whatever a kill leaves out before it, the continued run makes again.
        self._write_rows(trainer)
        if self._is_best():
            self._save(trainer, self.folder.last.with_name("best.ckpt"))
        self._save(trainer, self.folder.last, self._to_keep(trainer))
        self._last_is_whole = True

    def summary(self) -> str:
        """The last epoch's accuracy, with the best epoch's beside it."""
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
        # A run that ran out of its time goes on at the next call.
        out_of_time = any(isinstance(c, Timer) and (c.time_remaining() or 1) <= 0 for c in trainer.callbacks)  # type: ignore[attr-defined]
        if trainer.is_global_zero and self.rows and not out_of_time:
            write_text(self.folder.finished, f"{self.summary()}\n")

    def _save(self, trainer: pl.Trainer, path: Path, keep: Path | None = None) -> None:
        if not trainer.is_global_zero:
            trainer.save_checkpoint(path, weights_only=False)  # takes part in the collectives; only rank 0 writes
            return
        with replacing(path, keep) as temporary, writing_in_place(trainer.strategy):
            trainer.save_checkpoint(temporary, weights_only=False)

    def _to_keep(self, trainer: pl.Trainer) -> Path | None:
        """The name that the old last.ckpt gets; none where it is damaged, or it would replace a good one."""
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
            text = io.StringIO()
            writer = csv.DictWriter(text, columns, lineterminator="\n")
            writer.writeheader()
            writer.writerows(self.rows)
            write_text(self.folder.metrics, text.getvalue())


def _record_of(path: Path) -> RunCheckpoint:
    """A checkpoint that a run can go on from. All of the file is read and checked.

    Raises:
        UserError: what is wrong with the file, without its name.
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
        raise UserError("is no checkpoint of a run")
    return checkpoint


def _is_one(name: str, kinds: tuple[str, ...]) -> bool:
    """Whether a metric is one of these: a whole name, or a beginning that ends with a slash."""
    return any(name == kind or (kind.endswith("/") and name.startswith(kind)) for kind in kinds)


def flat(config: Any, prefix: str = "") -> dict[str, Any]:
    """Nested settings as dotted names; those that only change how a run is shown are left out."""
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
    """What differs between two flat settings, as ``name: old -> new``."""
    # A setting that is not there is as good as null: another Lightning may know more settings.
    return [
        f"{key}: {old.get(key)} -> {new.get(key)}"
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key)
    ]
