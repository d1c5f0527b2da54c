"""A cell is a ``fit`` of the command line, in a folder of its own; several of one teacher make a pack."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.cli import LightningCLI
from torch import nn

from ickd_pl.benchmark.pack import Pack
from ickd_pl.benchmark.pack_record import PackRecord, write_members
from ickd_pl.benchmark.plan import Cell
from ickd_pl.cli import IckdCLI, user_error
from ickd_pl.errors import IncompatiblePair, NonFiniteLoss, UserError
from ickd_pl.runtime import EpochRecord, RunFolder
from ickd_pl.runtime.atomic import replacing
from ickd_pl.runtime.configs import find_configs
from ickd_pl.weights import load_student, read_file


class CellCLI(IckdCLI):
    """A ``fit`` into a folder that is named beforehand; ``builds_only`` leaves the training to a pack.

    Args:
        words: the command line.
        place: the cell's folder.
        builds_only: build model, data and trainer, and train nothing.
        callbacks: further callbacks of the trainer, such as a clock.
    """

    def __init__(
        self, words: list[str], place: Path, builds_only: bool = False, callbacks: Sequence[pl.Callback] = ()
    ) -> None:
        self._place, self._builds_only, self._more = RunFolder(place), builds_only, list(callbacks)
        super().__init__(find_configs(words))

    @property
    def folder(self) -> RunFolder:
        return self._place

    def instantiate_trainer(self, **kwargs: Any) -> pl.Trainer:
        if self._builds_only:  # the teacher need not be read
            self.trainer_defaults["callbacks"] = [EpochRecord(self.folder, self.settings)]
            return LightningCLI.instantiate_trainer(self, **kwargs)
        trainer = super().instantiate_trainer(**kwargs)
        trainer.callbacks.extend(self._more)  # type: ignore[attr-defined]
        return trainer

    def fit(self, model: Any, datamodule: Any, ckpt_path: Any = None, **kwargs: Any) -> None:
        if not self._builds_only:
            super().fit(model, datamodule, ckpt_path=ckpt_path, **kwargs)


class Outcome(NamedTuple):
    """What became of a cell: ``done``, ``failed`` (a loss was not finite) or ``refused`` (an incompatible pair)."""

    status: str
    reason: str | None
    cli: CellCLI | None
    packed_with: list[str]


@dataclass
class Job:
    """A cell that is to be trained: its words and its folder."""

    cell: Cell
    words: list[str]
    place: Path
    callbacks: list[pl.Callback] = field(default_factory=list)


def build(job: Job) -> CellCLI | Outcome:
    """Build a cell without training it, or say why it cannot be.

    Raises:
        UserError: a mistake in the settings.
    """
    try:
        with _stopped_by_parser():
            return CellCLI(job.words, job.place, builds_only=True)
    except Exception as error:
        return _refusal(error)


def train_alone(job: Job) -> Outcome:
    """Train one cell, or continue it.

    Raises:
        UserError: a mistake in the settings, a folder that holds something else.
    """
    try:
        with _stopped_by_parser():
            return Outcome("done", None, CellCLI(job.words, job.place, callbacks=job.callbacks), [])
    except Exception as error:
        return _refusal(error)


def train_pack(
    jobs: Sequence[Job], path: Path, callbacks: Sequence[pl.Callback] = (), trained_teacher: bool = True
) -> list[Outcome]:
    """Train several cells as one pack, or continue it.

    Args:
        jobs: cells with the same data, seed, trainer and teacher.
        path: the pack's checkpoint.
        callbacks: further callbacks of the trainer.
        trained_teacher: read the teacher's weights; a timing needs none.
    """
    built = [build(job) for job in jobs]
    fine = [(job, cli) for job, cli in zip(jobs, built, strict=True) if isinstance(cli, CellCLI)]
    outcomes: dict[str, Outcome] = {
        str(job.cell): found for job, found in zip(jobs, built, strict=True) if isinstance(found, Outcome)
    }
    if fine:
        names = [str(job.cell.method) for job, _ in fine]
        first = fine[0][1]
        clip = first.settings["trainer"].get("gradient_clip_val")
        pack = Pack([cli.model for _, cli in fine], names, gradient_clip_val=clip)
        if not trained_teacher:
            for member in pack:
                member._teacher_ready = True
        record = PackRecord(path, [RunFolder(job.place) for job, _ in fine], [cli.settings for _, cli in fine])
        first.trainer_defaults["callbacks"] = [record, *callbacks]
        trainer = LightningCLI.instantiate_trainer(first, gradient_clip_val=None)
        going_on = _continues(path, names, record)
        if going_on != "finished":
            trainer.fit(pack, datamodule=first.datamodule, ckpt_path=path if going_on else None, weights_only=True)
        for job, cli in fine:
            name = str(job.cell.method)
            others = [other for other in names if other != name]
            stopped = pack.stopped.get(name)
            outcomes[str(job.cell)] = Outcome("failed" if stopped else "done", stopped, cli, others)
    return [outcomes[str(job.cell)] for job in jobs]


def members_of(path: Path) -> list[str]:
    """The names of a pack's members, by its checkpoint; none where there is no whole checkpoint."""
    if not path.is_file():
        return []
    try:
        return [str(name) for name in read_file(path).get("ickd_pl_pack", {}).get("names", [])]
    except UserError:
        return []


def _continues(path: Path, names: list[str], record: PackRecord) -> str:
    """ "" to start, "continue", or "finished"; a pack of other members starts anew, for it has no result yet."""
    if not path.is_file():
        return ""
    try:
        content = read_file(path)
    except UserError:
        path.unlink()  # cut short or damaged: the pack has no result, so it is trained again
        return ""
    if content.get("ickd_pl_pack", {}).get("names") != names:
        path.unlink()
        return ""
    states = content["callbacks"][PackRecord.__qualname__]["members"]
    stopped = content["ickd_pl_pack"]["stopped"]
    going = [state for name, state in zip(names, states, strict=True) if name not in stopped]
    if all(len(state["rows"]) >= state["planned"] for state in going):
        record.load_state_dict(content["callbacks"][PackRecord.__qualname__])
        write_members(
            path, {i: record.records[i] for i, name in enumerate(names) if name not in stopped}
        )  # killed after the last epoch
        return "finished"
    return "continue"


@contextmanager
def _stopped_by_parser() -> Iterator[None]:
    """The parser ends the process after a mistake; a benchmark must say which cell it was in."""
    try:
        yield
    except SystemExit as stop:
        raise UserError("its settings are not accepted, see the line above") from stop


def _refusal(error: Exception) -> Outcome:
    cause = user_error(error)
    if isinstance(cause, IncompatiblePair):
        return Outcome("refused", str(cause), None, [])
    if isinstance(cause, NonFiniteLoss):
        return Outcome("failed", str(cause), None, [])
    raise cause if cause is not None else error


def predict(checkpoint: Path, data: Any, place: Path) -> tuple[nn.Module, Any, Any]:
    """The trained network of a checkpoint, with :func:`predict_with`'s results."""
    net = load_student(checkpoint)
    return net, *predict_with(net, data, place)


def predict_with(net: nn.Module, data: Any, place: Path) -> tuple[Any, Any]:
    """Predicted and true classes (N,) of the test images, in their order; kept as ``predictions.npz``.

    Args:
        net: in eval mode.
        data: the data module; it is set up for testing here.
        place: the cell's folder.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    net.to(device)
    data.setup("test")
    predicted, labels = [], []
    with torch.no_grad():
        for batch in data.test_dataloader():
            predicted.append(net(batch.image.to(device)).argmax(1).cpu())
            labels.append(batch.label.cpu())
    found, truth = (torch.cat(parts).numpy().astype(np.int16) for parts in (predicted, labels))
    with replacing(place / "predictions.npz") as temporary, temporary.open("wb") as file:
        np.savez(file, predicted=found, label=truth)
    return found, truth


@contextmanager
def quietly() -> Iterator[None]:
    """Without Lightning's greetings for every one of many runs."""
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
    """Delete a file or a folder that has done its work."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
