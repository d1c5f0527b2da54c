"""Run the command line in this process, and read the files it has written."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock

from ickd_pl.cli import main

REPOSITORY = Path(__file__).resolve().parents[2]

# Just enough digits for several batches with a smaller last one.
TINY = [
    "--config=configs/base.yaml",
    "--data=Digits",
    "--data.init_args.train_size=100",
    "--data.init_args.batch_size=32",
    "--model.milestones=[2]",
    "--trainer.accelerator=cpu",
    "--trainer.enable_progress_bar=false",
    "--trainer.enable_model_summary=false",
]
QUIET = ["--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false"]


@dataclass(frozen=True)
class Outcome:
    """Exit status and output of a command."""

    status: Any
    out: str
    err: str


@dataclass(frozen=True)
class Run:
    """A finished run: its folder, its root, and the arguments after ``fit``."""

    path: Path
    root: Path
    args: list[str]

    @property
    def last(self) -> Path:
        return self.path / "checkpoints" / "last.ckpt"

    @property
    def rows(self) -> list[dict[str, str]]:
        return rows_of(self.path)


def cli(*args: object) -> Outcome:
    """``python cli.py ARGS`` in this process."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            status: Any = main([str(word) for word in args])
        except SystemExit as stop:
            status = stop.code
    return Outcome(status, out.getvalue(), err.getvalue())


def subprocess_cli(*args: object, seconds: int = 120) -> Outcome:
    """``python cli.py ARGS`` in a separate process, with one thread."""
    command = [sys.executable, str(REPOSITORY / "cli.py"), *map(str, args)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    for name in ("PL_GLOBAL_SEED", "PL_SEED_WORKERS"):  # set in this process by earlier runs
        environment.pop(name, None)
    done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, env=environment, check=False)
    return Outcome(done.returncode, done.stdout, done.stderr)


class Forked:
    """Starts ``python cli.py`` in processes of their own, without the time of an import (see forked.py)."""

    def __init__(self) -> None:
        script = Path(__file__).with_name("forked.py")
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        for name in ("PL_GLOBAL_SEED", "PL_SEED_WORKERS"):
            environment.pop(name, None)
        self.server = subprocess.Popen(
            [sys.executable, str(script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        self.count = 0

    def _ask(self, **request: Any) -> int:
        assert self.server.stdin is not None and self.server.stdout is not None
        self.server.stdin.write(f"{json.dumps(request)}\n")
        self.server.stdin.flush()
        return int(json.loads(self.server.stdout.readline()))

    def start(self, *args: object, **environment: str) -> Started:
        """Start a command in the current folder; its output goes to files in that folder."""
        self.count += 1
        out = Path.cwd() / f".output{self.count}"
        words = [str(word) for word in args]
        pid = self._ask(args=words, out=str(out), cwd=str(Path.cwd()), environment=environment)
        return Started(self, pid, out)

    def run(self, *args: object, **environment: str) -> Outcome:
        """Run a command to its end."""
        return self.start(*args, **environment).wait()

    def close(self) -> None:
        assert self.server.stdin is not None
        self.server.stdin.close()
        self.server.wait(30)


@dataclass(frozen=True)
class Started:
    """A running command."""

    server: Forked
    pid: int
    out: Path

    def text(self) -> str:
        """What it has printed so far."""
        return "".join(
            Path(f"{self.out}.{end}").read_text() for end in ("out", "err") if Path(f"{self.out}.{end}").exists()
        )

    def wait(self) -> Outcome:
        code = self.server._ask(wait=self.pid)
        return Outcome(code, Path(f"{self.out}.out").read_text(), Path(f"{self.out}.err").read_text())


def fit_args(root: Path, args: list[str], epochs: int = 1) -> list[str]:
    """Arguments of a tiny ``fit`` with the output root ``root``."""
    return ["fit", *TINY, f"--trainer.max_epochs={epochs}", f"--trainer.default_root_dir={root}", *args]


def student_args(teacher: Run, method: str = "ickd", *more: str) -> list[str]:
    """Arguments for a student: ICKD's file with KD added on the command line, or only a method's file."""
    stacked = ["configs/pairs/resnet20_resnet8.yaml", f"configs/methods/{method}.yaml"]
    kd = ["--model.strategies+=KD"] if method == "ickd" else []
    return [f"--config={file}" for file in stacked] + [*kd, f"--model.teacher_weights={teacher.last}", *more]


def finished_run(root: Path, where: str, args: list[str], epochs: int) -> Run:
    """Train a run, whose folder must be ``root/where``."""
    outcome = cli(*fit_args(root, args, epochs))
    assert outcome.status == 0, outcome.err
    run = Run(root / where, root, args)
    assert run.last.is_file(), sorted(root.rglob("*"))
    return run


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """A folder that the first process of a test run fills and all processes read.

    Args:
        factory: pytest's ``tmp_path_factory``.
        name: name of the folder.
        make: fills the folder, which exists and is empty.
    """
    # pytest-xdist gives each process a subfolder of the test run's folder.
    root = factory.getbasetemp().parent if "PYTEST_XDIST_WORKER" in os.environ else factory.getbasetemp()
    folder, ready = root / name, root / f"{name}.ready"
    with FileLock(root / f"{name}.lock"):
        if not ready.exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            make(folder)
            ready.touch()
    return folder


def rows_of(path: Path) -> list[dict[str, str]]:
    """The rows of metrics.csv without the seconds, which differ between runs."""
    with (path / "metrics.csv").open(newline="") as file:
        return [{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(file)]


def load(path: Path) -> dict[str, Any]:
    """Load a checkpoint with ``weights_only=True``."""
    content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return content


def snapshot(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Modification time and content of every file; of a lock, which some versions of filelock rewrite, the content."""
    files = [p for p in sorted(folder.rglob("*")) if p.is_file()]
    return {str(p): (0 if p.suffix == ".lock" else p.stat().st_mtime_ns, p.read_bytes()) for p in files}


def assert_equal(one: Any, other: Any, key_path: str = "") -> None:
    """Compare nested plain data and tensors, bit for bit."""
    assert type(one) is type(other), key_path
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other), key_path
    elif isinstance(one, dict):
        assert one.keys() == other.keys(), key_path
        for key in one:
            assert_equal(one[key], other[key], f"{key_path}/{key}")
    elif isinstance(one, list | tuple):
        assert len(one) == len(other), key_path
        for i, (a, b) in enumerate(zip(one, other, strict=True)):
            assert_equal(a, b, f"{key_path}/{i}")
    else:
        assert one == other, key_path


def assert_same_run(one: Path, other: Path) -> None:
    """Assert that two run folders agree bit for bit in weights, optimizer, schedule and metrics."""
    a, b = load(one / "checkpoints" / "last.ckpt"), load(other / "checkpoints" / "last.ckpt")
    for part in ("state_dict", "optimizer_states", "lr_schedulers", "epoch", "global_step"):
        assert_equal(a[part], b[part], part)
    assert rows_of(one) == rows_of(other)
