"""Estimates a benchmark's cost: cells, steps, and time from a short measurement on this machine."""

from __future__ import annotations

import math
import tempfile
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch

from ickd_pl.benchmark.cells import CellCLI, Job, Outcome, build, quietly, train_pack
from ickd_pl.benchmark.plan import Benchmark, Cell, Group, shard_of
from ickd_pl.benchmark.records import read_result
from ickd_pl.benchmark.schema import combinations
from ickd_pl.benchmark.teachers import Teachers
from ickd_pl.errors import NonFiniteLoss, UserError
from ickd_pl.runs import RunFolder
from ickd_pl.runs.data_options import data_name
from ickd_pl.strategies import from_spec
from ickd_pl.weights import weights_file

# Epochs, steps and evaluated batches of a timing. Only the last epoch counts: the first is slower, since memory is
# allocated and kernels are compiled, and on a GPU steps are recorded. On a CPU a step of a pack may take seconds.
EPOCHS, STEPS = (3, 12) if torch.cuda.is_available() else (2, 5)
EVALUATED = 4
# Nearly no training: with a teacher that is not trained yet, losses would soon be infinite.
RATE = 1e-6


@dataclass
class Timing:
    """Seconds for start-up, for one step, for an evaluation, and for an epoch apart from these."""

    start: float
    step: float
    evaluation: float
    epoch: float
    stopped: str = ""  # members whose loss was not finite, which makes the rest faster

    def of(self, epochs: int, steps: int) -> float:
        """Seconds of a run with this many epochs and steps per epoch, with checkpoints and predictions at the end."""
        return self.start + epochs * (steps * self.step + self.evaluation + self.epoch) + self.evaluation


class _Stopwatch(pl.Callback):
    """Measures the steps, the batches of an evaluation, and the rest of an epoch: metrics.csv, checkpoint.

    Attributes:
        steps: seconds of each step, by epoch.
        evaluated: seconds of each evaluated batch, by epoch; the first one starts the evaluation.
        rests: seconds of the rest of each epoch but the last.
        batches: of a whole evaluation.
    """

    def __init__(self) -> None:
        self.steps: list[list[float]] = []
        self.evaluated: list[list[float]] = []
        self.rests: list[float] = []
        self.batches = 0
        self._mark = 0.0

    @property
    def evaluation(self) -> float:
        """Seconds of a whole evaluation, from the last one's batches."""
        first, *others = self.evaluated[-1]
        return first + (self.batches - 1) * (sum(others) / len(others) if others else first)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.steps:
            self._lap(self.rests, pl_module)
        self.steps.append([])
        self._mark = _now(pl_module)

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any) -> None:
        if args[-1] > 0:  # the first step of an epoch ends here
            self._lap(self.steps[-1], pl_module)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._lap(self.steps[-1], pl_module)
        self.evaluated.append([])
        self.batches = _batches(trainer)

    def on_validation_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any) -> None:
        self._lap(self.evaluated[-1], pl_module)

    def _lap(self, laps: list[float], module: pl.LightningModule) -> None:
        now = _now(module)
        laps.append(now - self._mark)
        self._mark = now


def _batches(trainer: pl.Trainer) -> int:
    """Number of batches of a whole evaluation; of a loader without a length, those that are evaluated here."""
    loaders: Any = trainer.val_dataloaders
    try:
        return sum(map(len, loaders)) if isinstance(loaders, list | tuple) else len(loaders)
    except TypeError:
        return int(sum(trainer.num_val_batches))


def _now(module: pl.LightningModule) -> float:
    if module.device.type == "cuda":
        torch.cuda.synchronize(module.device)
    return time.perf_counter()


def describe(
    benchmark: Benchmark, folder: Path | None, shard: tuple[int, int], timed: bool, commands: bool
) -> Iterator[str]:
    """Yield the plan line by line, since timing takes a while.

    Args:
        benchmark: to plan.
        folder: results folder whose finished cells are skipped, or None.
        shard: (i, n): the i-th of n parts, counted from 1.
        timed: time a few steps for an estimate.
        commands: also print the command of each cell.
    """
    groups = [group for group in shard_of(benchmark.groups, shard) if not _done(group, folder)]
    total, steps = 0.0, 0
    timings: dict[Any, Timing | str] = {}
    for group in groups:
        epochs, per_epoch = _size(benchmark, group)
        runs = 1 + _candidates(benchmark, group)
        own = runs * epochs * per_epoch * len(group.cells)
        text = f"{group}: {epochs} epochs x {per_epoch} steps"
        text += f", {runs} times (a choice among {runs - 1})" if runs > 1 else ""
        if timed:
            # Other seeds cost the same.
            key = (group.cells[0].pair, tuple(cell.method or cell.network for cell in group.cells))
            if key not in timings:
                timings[key] = _time(benchmark, group, folder)
            found = timings[key]
            if isinstance(found, str):
                text, own = f"{group}: {found}", 0
            else:
                seconds = runs * found.of(epochs, per_epoch)
                total += seconds
                text += f", about {_duration(seconds)}{found.stopped}"
        steps += own
        yield text
        if commands:
            yield from (f"    {_command(benchmark, cell, folder)}" for cell in group.cells)
    cells = sum(len(group.cells) for group in groups)
    yield f"{benchmark.settings.name}: {cells} cells in {len(groups)} runs, {steps:,} steps of a student"
    if timed:
        yield f"estimate on this machine: {_duration(total)} ({total:.0f} seconds), one run after another"


def _candidates(benchmark: Benchmark, group: Group) -> int:
    """Number of runs that choose a cell's arguments before its own training."""
    listed = benchmark.settings.choices.get(str(group.cells[0].method))
    return len(combinations(listed)) if listed else 0


def _done(group: Group, folder: Path | None) -> bool:
    return folder is not None and all(read_result(folder / "cells" / cell.path) is not None for cell in group.cells)


def _size(benchmark: Benchmark, group: Group) -> tuple[int, int]:
    """Number of epochs (including a first stage) and of steps per epoch."""
    cell = group.cells[0]
    recipe = benchmark.recipe(cell)
    data = benchmark.data(cell.kind)
    strategies = recipe["model"].get("strategies") or []
    first = max(
        (from_spec(s if isinstance(s, dict) else {"class_path": s}).pretrain_epochs for s in strategies), default=0
    )
    return int(recipe["trainer"]["max_epochs"]) + first, math.ceil(data.num_train / data.batch_size)


def _time(benchmark: Benchmark, group: Group, results: Path | None) -> Timing | str:
    """Time a group's shortened training in a temporary folder; returns the reason if it is not trained."""
    teachers, first = Teachers(benchmark, results or Path(), print), group.cells[0]
    if first.kind == "teacher" and teachers.is_external(first):
        return "teacher from a file or download, not trained"
    weights = teachers.weights(first.teacher) if first.teacher else None
    if weights is not None and not weights_file(weights).is_file():
        weights = None
    with tempfile.TemporaryDirectory() as scratch, quietly(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # they are of the shortened run
        began = time.perf_counter()
        watch = _Stopwatch()
        jobs = []
        for cell in group.cells:
            folder = Path(scratch) / str(cell)
            args = benchmark.args(cell, weights, folder, _short(benchmark, group, cell))
            jobs.append(Job(cell, args, folder, [watch]))
        try:
            outcomes = _run(jobs, Path(scratch) / "pack.ckpt", watch, benchmark.settings.fused, weights is not None)
        except UserError as error:
            raise UserError(f"{group}: {error}") from error
        if not any(o.status == "done" for o in outcomes):
            return f"{'refused' if outcomes[0].status == 'refused' else 'not timed'}: {outcomes[0].reason}"
        whole = time.perf_counter() - began
    stopped = [str(job.cell.method) for job, o in zip(jobs, outcomes, strict=True) if o.status == "failed"]
    step, rest = sum(watch.steps[-1]) / len(watch.steps[-1]), watch.rests[-1]
    known = sum(map(sum, watch.steps)) + sum(map(sum, watch.evaluated)) + len(watch.steps) * rest
    text = (
        f" (too little: {', '.join(stopped)} stopped in the timing, by a loss that was not finite)" if stopped else ""
    )
    return Timing(max(0.0, whole - known), step, watch.evaluation, rest, text)


def _short(benchmark: Benchmark, group: Group, cell: Cell) -> dict[str, Any]:
    """Settings that shorten a cell: few steps and images, a one-epoch first stage, any accuracy of the teacher."""
    model: dict[str, Any] = {"milestones": [], "teacher_floor": None, "lr": RATE}
    strategies = benchmark.strategies(str(cell.method)) if cell.method else []
    if any("pretrain_epochs" in spec.get("init_args", {}) for spec in strategies):
        for spec in strategies:
            if "pretrain_epochs" in spec.get("init_args", {}):
                spec["init_args"]["pretrain_epochs"] = 1
        model["strategies"] = strategies
    trainer = {
        "max_epochs": EPOCHS,
        "limit_train_batches": _share(benchmark, group),
        "limit_val_batches": EVALUATED,
        "check_val_every_n_epoch": 1,
    }
    return {"trainer": trainer, "model": model}


def _share(benchmark: Benchmark, group: Group) -> float:
    """The fraction of an epoch to time. A float: Lightning treats the integer 1 differently."""
    return min(1.0, STEPS / _size(benchmark, group)[1])


def _run(jobs: list[Job], path: Path, watch: _Stopwatch, fused: bool, trained_teacher: bool) -> list[Outcome]:
    """Train the jobs; a teacher that is not trained yet has the same speed."""
    if len(jobs) > 1:
        return train_pack(jobs, path, [watch], trained_teacher=trained_teacher, fused=fused)
    built = build(jobs[0])
    if not isinstance(built, CellCLI):
        return [built]
    if trained_teacher:
        built.model.prepare_teacher()
    else:
        built.model.teacher_weights.skip()
    built.trainer.callbacks.append(watch)  # type: ignore[attr-defined]
    try:
        built.trainer.fit(built.model, datamodule=built.datamodule)
    except NonFiniteLoss as error:
        return [Outcome("failed", str(error), None, [])]
    return [Outcome("done", None, built, [])]


def _command(benchmark: Benchmark, cell: Cell, folder: Path | None) -> str:
    root = folder or Path("outputs", "bench", benchmark.settings.name)
    alone, weights = root / "alone", None
    if cell.teacher:
        weights = Teachers(benchmark, root, print).weights(cell.teacher)
        teachers = benchmark.settings.teachers
        if teachers.get == "train" and not weights.is_file():
            weights = RunFolder.of(
                alone, data_name(benchmark.data("student")), None, cell.teacher, [], teachers.seed
            ).last
    args = benchmark.args(cell, weights, root / "commands", {})
    return " ".join(["python cli.py", *args, "--trainer.default_root_dir", alone.as_posix()])


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} seconds"
    return f"{seconds / 60:.0f} minutes" if seconds < 5400 else f"{seconds / 3600:.1f} hours"
