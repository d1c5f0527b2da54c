"""Trains the cells of a benchmark: each is a ``fit`` in its own folder, alone or in a pack with one teacher."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytorch_lightning as pl
from torch import nn

from ickd_pl.benchmark.plan import Cell
from ickd_pl.errors import IncompatiblePair, NonFiniteLoss, UserError
from ickd_pl.files import replacing
from ickd_pl.runs import EpochRecord, RunFolder
from ickd_pl.runs.configs import check_trainer, find_configs
from ickd_pl.runs.decide import Asked, inputs_of
from ickd_pl.runs.fit import IckdCLI
from ickd_pl.runs.pack_folder import PackRecord, decide_pack, newest_pack
from ickd_pl.runs.parser import RaisingParser
from ickd_pl.runs.user_errors import user_error
from ickd_pl.training.evaluation import predicted_classes
from ickd_pl.training.pack import Pack
from ickd_pl.training.teacher_images import TeacherImages


class CellCLI(IckdCLI):
    """The command line's ``fit`` with a fixed run folder; with ``builds_only`` a pack does the training.

    Args:
        args: command-line arguments.
        folder: the cell's folder.
        builds_only: build model, data and trainer without training.
        callbacks: additional trainer callbacks, such as a timer.
    """

    parser_class = RaisingParser

    def __init__(
        self, args: list[str], folder: Path, builds_only: bool = False, callbacks: Sequence[pl.Callback] = ()
    ) -> None:
        self._folder, self._builds_only, self._more = RunFolder(folder), builds_only, list(callbacks)
        super().__init__(find_configs(args))

    @property
    def folder(self) -> RunFolder:
        return self._folder

    def instantiate_trainer(self, **kwargs: Any) -> pl.Trainer:
        if self._builds_only:  # no need to read the teacher
            check_trainer(self.settings["trainer"])
            return self.make_trainer([EpochRecord(self.folder, self.settings)], **kwargs)
        trainer = super().instantiate_trainer(**kwargs)
        trainer.callbacks.extend(self._more)  # type: ignore[attr-defined]
        return trainer

    def fit(self, model: Any, datamodule: Any, ckpt_path: Any = None, **kwargs: Any) -> None:
        if not self._builds_only:
            super().fit(model, datamodule, ckpt_path=ckpt_path, **kwargs)


class Outcome(NamedTuple):
    """How a cell ended: ``done``, ``failed`` (a loss was not finite) or ``refused`` (incompatible pair)."""

    status: str
    reason: str | None
    cli: CellCLI | None
    packed_with: list[str]


@dataclass
class Job:
    """A cell to train, with its command-line arguments and its folder."""

    cell: Cell
    args: list[str]
    folder: Path
    callbacks: list[pl.Callback] = field(default_factory=list)


def build(job: Job) -> CellCLI | Outcome:
    """Build a cell without training it, or return why it cannot be built.

    Raises:
        UserError: invalid settings.
    """
    try:
        with _stopped_by_parser():
            return CellCLI(job.args, job.folder, builds_only=True)
    except Exception as error:
        return _refusal(error)


def train_alone(job: Job) -> Outcome:
    """Train one cell or resume it.

    Raises:
        UserError: invalid settings, or the folder contains a different run.
    """
    try:
        with _stopped_by_parser():
            return Outcome("done", None, CellCLI(job.args, job.folder, callbacks=job.callbacks), [])
    except Exception as error:
        return _refusal(error)


def train_pack(
    jobs: Sequence[Job],
    path: Path,
    callbacks: Sequence[pl.Callback] = (),
    trained_teacher: bool = True,
    fused: bool = False,
) -> list[Outcome]:
    """Train several cells as one pack or resume it.

    Args:
        jobs: cells with the same data, seed, trainer and teacher.
        path: the pack's checkpoint.
        callbacks: additional trainer callbacks.
        trained_teacher: read the teacher's weights; timing does not need them.
        fused: compute the students as one network.
    """
    built = [build(job) for job in jobs]
    accepted = [(job, cli) for job, cli in zip(jobs, built, strict=True) if isinstance(cli, CellCLI)]
    outcomes: dict[str, Outcome] = {
        str(job.cell): found for job, found in zip(jobs, built, strict=True) if isinstance(found, Outcome)
    }
    if accepted:
        names = [str(job.cell.method) for job, _ in accepted]
        first, kept = accepted[0][1], newest_pack(path)
        if kept is not None and kept.names == names:
            for (_, cli), note in zip(accepted, kept.content["ickd_pl_pack"]["members"], strict=True):
                cli.continue_older(note["hyper_parameters"])
        clip = {key: first.settings["trainer"].get(key) for key in ("gradient_clip_val", "gradient_clip_algorithm")}
        pack = Pack([cli.model for _, cli in accepted], names, **clip, fused=fused)
        if not trained_teacher:
            for member in pack:
                member.teacher_weights.skip()
        for member in pack:
            member.prepare_teacher()
        inputs = inputs_of(
            first.trainer, first.datamodule, next((m for m in pack if m.teacher is not None), first.model)
        )
        folders, configs = [RunFolder(job.folder) for job, _ in accepted], [cli.settings for _, cli in accepted]
        record = PackRecord(path, folders, configs, inputs)
        trainer = first.make_trainer([record, *callbacks], **dict.fromkeys(clip))
        state, kept = decide_pack(path, names, [Asked(config, inputs) for config in configs])
        if state == "finished" and kept is not None:
            record.finish(kept)
            pack.stopped = dict(kept.content["ickd_pl_pack"]["stopped"])
        else:
            ckpt_path = None if kept is None else kept.path
            with suppress(NonFiniteLoss):  # raised when the last remaining member diverges
                trainer.fit(pack, datamodule=first.datamodule, ckpt_path=ckpt_path, weights_only=True)
        for job, cli in accepted:
            cli.datamodule = first.datamodule  # whose images are read already
            name = str(job.cell.method)
            others = [other for other in names if other != name]
            stopped = pack.stopped.get(name)
            outcomes[str(job.cell)] = Outcome("failed" if stopped else "done", stopped, cli, others)
    return [outcomes[str(job.cell)] for job in jobs]


@contextmanager
def _stopped_by_parser() -> Iterator[None]:
    """Convert the parser's exit after invalid settings into a :class:`UserError`, to which the cell is added."""
    try:
        yield
    except SystemExit as stop:
        if stop.code != 2:  # Lightning exits after a signal
            raise
        raise UserError("invalid settings, see the line above") from stop


def _refusal(error: Exception) -> Outcome:
    cause = user_error(error)
    if isinstance(cause, IncompatiblePair):
        return Outcome("refused", str(cause), None, [])
    if isinstance(cause, NonFiniteLoss):
        return Outcome("failed", str(cause), None, [])
    raise cause if cause is not None else error


def predict(
    net: nn.Module, data: Any, folder: Path, settings: dict[str, Any], images: TeacherImages | None = None
) -> tuple[Any, Any, pl.Trainer]:
    """Predict the classes of the test images, in order, and store them in ``predictions.npz``.

    Args:
        net: a trained network.
        data: the data module; this sets it up for testing.
        folder: the cell's folder.
        settings: of the trainer. Precision and device are those of the training, so that the predictions agree
            with the accuracy logged there.
        images: gives a teacher its images; None: they are as the data normalise them.

    Returns:
        Predicted classes (N,), true classes (N,), and the trainer, which has device and precision.
    """
    data.setup("test")
    own = {key: settings[key] for key in ("accelerator", "devices", "precision") if key in settings}
    trainer = pl.Trainer(
        **own, logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        use_distributed_sampler=False,
    )  # fmt: skip
    classes = predicted_classes(net.eval(), data.test_dataloader(), trainer, images)
    found, truth = (part.numpy().astype(np.int16) for part in classes)
    with replacing(folder / "predictions.npz") as temporary, temporary.open("wb") as file:
        np.savez(file, predicted=found, label=truth)
    return found, truth, trainer


@contextmanager
def quietly() -> Iterator[None]:
    """Silence Lightning's start-up messages, which each run would repeat."""
    names = ("pytorch_lightning.utilities.rank_zero", "lightning_fabric.utilities.seed", "pytorch_lightning")
    levels = {name: logging.getLogger(name).level for name in names}
    for name in names:
        logging.getLogger(name).setLevel(logging.WARNING)
    try:
        yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)


def remove(path: Path) -> None:
    """Delete a file or folder that is no longer needed."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
