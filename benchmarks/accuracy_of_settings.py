"""What the fast settings do to the accuracy: each alone, then all together, against float32 eager, seed by seed.

    python benchmarks/accuracy_of_settings.py --data data/cifar100-images --output outputs/settings

The teacher is trained first by configs/teachers/<teacher>.yaml, unless ``--teacher FILE`` gives one. Then every setting
trains a student for each seed, as a pack with one teacher: the same images in the same order, so that runs of one seed
differ by the setting alone. Only the last epoch is evaluated. Every finished setting is a line of
OUTPUT/accuracies.jsonl, and the same command goes on after the last one; a setting that was stopped is continued from
its last epoch.

A folder is read as ``train/<class>/*`` and ``test/<class>/*``; any other data module goes by its class and arguments:
``--data CIFAR100 root=data``.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import statistics
import sys
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import yaml

from common import model_settings, shipped
from ickd_pl.benchmark.cells import Job, quietly, train_alone, train_pack
from ickd_pl.errors import UserError
from ickd_pl.files import write_text
from ladder_parts.ours import usable
from ladder_parts.report import write_between_markers
from ladder_parts.rungs import FAST
from ladder_parts.turns import NotHere

PLAIN = "float32"
CHANNELS_LAST, FOLDED, COMPILED, TF32 = "model.channels_last", "model.fold_teacher", "model.compile", "model.tf32"
BFLOAT16 = "--trainer.precision=bf16-mixed"
OFF = tuple(f"--{name}=false" for name in (CHANNELS_LAST, FOLDED, COMPILED, TF32))
SETTINGS = {
    PLAIN: (),
    "channels_last": (f"--{CHANNELS_LAST}=true",),
    "folded teacher": (f"--{FOLDED}=true",),
    "bfloat16": (BFLOAT16,),
    "compile": (f"--{COMPILED}=true",),
    "TF32": (f"--{TF32}=true",),
    "all": (f"--{CHANNELS_LAST}=true", f"--{FOLDED}=true", f"--{COMPILED}=true", f"--{TF32}=true", BFLOAT16),
    FAST: (f"--config={FAST}",),
}
QUIET = ("--trainer.enable_model_summary=false", "--trainer.enable_progress_bar=false")
# Lost in the mean over the seeds, in points, above which a setting does not belong into the fast file.
MOST_LOST = 0.5


def schedule(epochs: int) -> dict[str, Any]:
    """The recipe's decays at the same parts of a shorter run, in whole epochs."""
    milestones = sorted({math.floor(epochs * decay / 240 + 0.5) for decay in (150, 180, 210)} - {0, epochs})
    return {
        "trainer": {"max_epochs": epochs, "check_val_every_n_epoch": epochs},
        "model": {"milestones": milestones},
    }


def data_arguments(words: Sequence[str]) -> list[str]:
    """Arguments of ``fit`` for a folder, or for a class and its ``NAME=VALUE``."""
    first, *more = words
    folder = Path(first).is_dir()
    start = ["--data=ImageFolder", f"--data.init_args.root={Path(first).resolve()}"] if folder else [f"--data={first}"]
    return [*start, *(f"--data.init_args.{word}" for word in more)]


class Runs:
    """The runs of this script below one folder.

    Args:
        options: of the command line.
    """

    def __init__(self, options: argparse.Namespace) -> None:
        self.options, self.output = options, options.output.resolve()
        self.lines = self.output / "accuracies.jsonl"
        self.output.mkdir(parents=True, exist_ok=True)

    def _job(self, name: str, seed: int, epochs: int, *words: str) -> Job:
        folder = self.output / "runs" / name.replace("/", "_").replace(" ", "_") / f"seed_{seed}"
        file = self.output / f"epochs_{epochs}.yaml"
        write_text(file, yaml.safe_dump(schedule(epochs)))
        cell: Any = Cell(method=f"seed {seed}")
        return Job(
            cell,
            ["fit", "--config=configs/base.yaml", f"--config={file}", *words, *data_arguments(self.options.data),
             *QUIET, f"--seed_everything={seed}"],
            folder,
        )  # fmt: skip

    def teacher(self) -> tuple[str, float | None]:
        """File of the teacher, and its accuracy if it was trained here."""
        if self.options.teacher is not None:
            return str(self.options.teacher.resolve()), None
        name = model_settings("pairs", self.options.pair)["teacher"]
        job = self._job("teacher", 0, self.options.teacher_epochs, f"--config=configs/teachers/{name}.yaml")
        outcome = train_alone(job)
        if outcome.status != "done":
            raise UserError(f"the teacher {outcome.status}: {outcome.reason}")
        return str(job.folder / "checkpoints" / "last.ckpt"), _accuracy(job.folder)

    def train(self, name: str, teacher: str) -> dict[str, Any]:
        """Accuracies of a setting by seed, in percent, and the seconds that its students took together."""
        settings = usable([*OFF, *SETTINGS[name]])
        words = [f"--config=configs/pairs/{self.options.pair}.yaml"]
        words += [f"--config=configs/methods/{self.options.method}.yaml", f"--model.teacher_weights={teacher}"]
        jobs = [self._job(name, seed, self.options.epochs, *words, *settings) for seed in self.options.seeds]
        began = time.perf_counter()
        outcomes = train_pack(jobs, self.output / "runs" / f"{jobs[0].folder.parent.name}.ckpt")
        for job, outcome in zip(jobs, outcomes, strict=True):
            if outcome.status != "done":
                raise UserError(f"{name}, {job.cell}: {outcome.status}: {outcome.reason}")
        found = {str(seed): _accuracy(job.folder) for seed, job in zip(self.options.seeds, jobs, strict=True)}
        return {"setting": name, "accuracies": found, "seconds": round(time.perf_counter() - began, 1)}

    def stored(self) -> dict[str, dict[str, Any]]:
        """The finished settings."""
        if not self.lines.is_file():
            return {}
        lines = [json.loads(line) for line in self.lines.read_text(encoding="utf-8").splitlines()]
        return {line["setting"]: line for line in lines}

    def keep(self, line: dict[str, Any]) -> None:
        with self.lines.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


class Cell(SimpleNamespace):
    """What a benchmark's job asks of its cell."""

    method: str

    def __str__(self) -> str:
        return self.method


def _accuracy(folder: Path) -> float:
    with (folder / "metrics.csv").open(newline="", encoding="utf-8") as file:
        last = list(csv.DictReader(file))[-1]
    return next(float(value) for name, value in last.items() if name in ("test/acc1", "val/acc1"))


def table(found: dict[str, dict[str, Any]], seeds: Sequence[int]) -> str:
    """All accuracies, with differences to float32 of the same seed."""
    head = ["setting", *(f"seed {seed}" for seed in seeds), "mean", "mean difference", "of each seed", "seconds"]
    lines = [f"| {' | '.join(head)} |", "|---" + "|---:" * (len(head) - 1) + "|"]
    base = found.get(PLAIN, {}).get("accuracies")
    for name, line in found.items():
        own = [line["accuracies"][str(seed)] for seed in seeds]
        row = [name, *(f"{value:.2f}" for value in own), f"{statistics.mean(own):.2f}"]
        if base is None or name == PLAIN:
            row += ["", ""]
        else:
            apart = [value - base[str(seed)] for seed, value in zip(seeds, own, strict=True)]
            lost = statistics.mean(apart)
            row.append(f"{lost:+.2f}{'' if lost > -MOST_LOST else ' (too much)'}")
            row.append(", ".join(f"{value:+.2f}" for value in apart))
        row.append(f"{line['seconds']:.0f}")
        lines.append(f"| {' | '.join(row)} |")
    return "\n".join(lines)


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", required=True, metavar="WORD", help="FOLDER, or CLASS NAME=VALUE ...")
    parser.add_argument("--pair", default="resnet20_resnet8", choices=shipped("pairs"), metavar="PAIR")
    parser.add_argument("--method", default="ickd_kl", choices=shipped("methods"), metavar="METHOD")
    parser.add_argument("--settings", nargs="+", default=list(SETTINGS), choices=SETTINGS, metavar="SETTING")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--teacher", type=Path, help="its weights; default: trained here")
    parser.add_argument("--teacher_epochs", type=int, default=12)
    parser.add_argument("--output", type=Path, default=Path("outputs/settings"))
    parser.add_argument("--docs", type=Path, help="a page whose table, between its markers, is replaced")
    options = parser.parse_args(words)
    runs = Runs(options)
    warnings.filterwarnings("ignore", module="pytorch_lightning")  # as the command line does
    try:
        with quietly():
            teacher, accuracy = runs.teacher()
            if accuracy is not None:
                print(f"teacher: {accuracy:.2f} after {options.teacher_epochs} epochs", flush=True)
            for name in options.settings:
                if name in runs.stored():
                    continue
                if name == "TF32" and not torch.cuda.is_available():
                    print(f"{name}: left out, it has no effect without a GPU", flush=True)
                    continue
                try:
                    line = runs.train(name, teacher)
                except NotHere as reason:
                    print(f"{name}: left out, {reason}", flush=True)
                    continue
                runs.keep(line)
                print(f"{name}: {line['accuracies']}, {line['seconds']} seconds", flush=True)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    taught = "a given teacher" if accuracy is None else f"a teacher of {accuracy:.2f} % after {options.teacher_epochs}"
    found = {name: line for name, line in runs.stored().items() if name in SETTINGS}
    text = f"{options.pair}, {options.method}, {options.epochs} epochs; {taught}; torch {torch.__version__}.\n\n"
    text += table(found, options.seeds)
    print(f"\n{text}")
    (runs.output / "accuracies.md").write_text(text + "\n", encoding="utf-8")
    if options.docs is not None:
        write_between_markers(options.docs, "accuracies", text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
