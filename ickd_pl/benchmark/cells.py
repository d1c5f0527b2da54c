"""A cell is a ``fit`` of the command line, in a folder of its own; several of one teacher make a pack."""

from __future__ import annotations

import logging
import shutil
import sys
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
from ickd_pl.runs.fit import IckdCLI, user_error
from ickd_pl.runs.pack_folder import PackRecord, previous_of, write_members
from ickd_pl.runs.parser import RaisingParser
from ickd_pl.training.evaluation import predicted_classes
from ickd_pl.training.pack import Pack
from ickd_pl.weights import read_file


class CellCLI(IckdCLI):
    """A ``fit`` into a folder that is named beforehand; ``builds_only`` leaves the training to a pack.

    Args:
        words: the command line.
        place: the cell's folder.
        builds_only: build model, data and trainer, and train nothing.
        callbacks: further callbacks of the trainer, such as a clock.
    """

    parser_class = RaisingParser

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
            check_trainer(self.settings["trainer"])
            return self.make_trainer([EpochRecord(self.folder, self.settings)], **kwargs)
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
        clip = {key: first.settings["trainer"].get(key) for key in ("gradient_clip_val", "gradient_clip_algorithm")}
        pack = Pack([cli.model for _, cli in fine], names, **clip)
        if not trained_teacher:
            for member in pack:
                member.teacher_weights.skip()
        record = PackRecord(path, [RunFolder(job.place) for job, _ in fine], [cli.settings for _, cli in fine])
        trainer = first.make_trainer([record, *callbacks], **dict.fromkeys(clip))
        kept = _kept_of(path, names)
        if kept is not None and _ended(kept, record):
            pack.stopped = dict(kept.content["ickd_pl_pack"]["stopped"])
        else:
            goes_on = None if kept is None else kept.path
            with suppress(NonFiniteLoss):  # of the last member that was left
                trainer.fit(pack, datamodule=first.datamodule, ckpt_path=goes_on, weights_only=True)
        for job, cli in fine:
            name = str(job.cell.method)
            others = [other for other in names if other != name]
            stopped = pack.stopped.get(name)
            outcomes[str(job.cell)] = Outcome("failed" if stopped else "done", stopped, cli, others)
    return [outcomes[str(job.cell)] for job in jobs]


class _Kept(NamedTuple):
    """A whole checkpoint of a pack."""

    path: Path
    content: dict[str, Any]


def _newest(path: Path) -> _Kept | None:
    """The pack's checkpoint, or the one before where it is damaged; None where there is none.

    What is damaged is said and removed: it must not become the one before.
    """
    for candidate in (path, previous_of(path)):
        if candidate.is_file():
            try:
                content = read_file(candidate)
                if "ickd_pl_pack" in content:
                    return _Kept(candidate, content)
                why = "is no checkpoint of a pack"
            except UserError as error:
                why = str(error)
            print(f"warning: {candidate} is removed: {why}", file=sys.stderr, flush=True)
            candidate.unlink()
    return None


def members_of(path: Path) -> list[str]:
    """The names of the members of a pack that is not done, by its checkpoint; none where there is no whole one."""
    kept = _newest(path)
    return [] if kept is None else [str(name) for name in kept.content["ickd_pl_pack"]["names"]]


def _kept_of(path: Path, names: list[str]) -> _Kept | None:
    """The checkpoint that a pack of these members continues, if there is one."""
    kept = _newest(path)
    return kept if kept is not None and kept.content["ickd_pl_pack"]["names"] == names else None


def _ended(kept: _Kept, record: PackRecord) -> bool:
    """Whether the pack was killed after its last epoch; its members' files are then written."""
    own = kept.content["callbacks"][PackRecord.__qualname__]
    names, stopped = kept.content["ickd_pl_pack"]["names"], kept.content["ickd_pl_pack"]["stopped"]
    going = [state for name, state in zip(names, own["members"], strict=True) if name not in stopped]
    if not all(len(state["rows"]) >= state["planned"] for state in going):
        return False
    record.load_state_dict(own)
    write_members(kept.path, {i: record.records[i] for i, name in enumerate(names) if name not in stopped})
    return True


@contextmanager
def _stopped_by_parser() -> Iterator[None]:
    """The parser ends the process after a mistake; a benchmark must say which cell it was in."""
    try:
        yield
    except SystemExit as stop:
        if stop.code != 2:  # Lightning's answer to a signal
            raise
        raise UserError("its settings are not accepted, see the line above") from stop


def _refusal(error: Exception) -> Outcome:
    cause = user_error(error)
    if isinstance(cause, IncompatiblePair):
        return Outcome("refused", str(cause), None, [])
    if isinstance(cause, NonFiniteLoss):
        return Outcome("failed", str(cause), None, [])
    raise cause if cause is not None else error


def predict(net: nn.Module, data: Any, place: Path, settings: dict[str, Any]) -> tuple[Any, Any, pl.Trainer]:
    """Predicted and true classes (N,) of the test images, in their order; kept as ``predictions.npz``.

    Args:
        net: a trained network.
        data: the data module; it is set up for testing here.
        place: the cell's folder.
        settings: the trainer's: precision and device are the training's, so that these are the classes that its
            accuracy was counted from.

    Returns:
        The predicted classes, the true ones, and the trainer, which knows device and precision.
    """
    data.setup("test")
    own = {key: settings[key] for key in ("accelerator", "devices", "precision") if key in settings}
    trainer = pl.Trainer(
        **own, logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        use_distributed_sampler=False,
    )  # fmt: skip
    classes = predicted_classes(net.eval(), data.test_dataloader(), trainer)
    found, truth = (part.numpy().astype(np.int16) for part in classes)
    with replacing(place / "predictions.npz") as temporary, temporary.open("wb") as file:
        np.savez(file, predicted=found, label=truth)
    return found, truth, trainer


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
