"""Stop or kill tiny runs at a chosen moment, continue them, and find what they have left."""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

import pytest

from tests.runs.helpers import REPOSITORY, Forked, Outcome, Started, assert_same_run, made_once, rows_of

# Two epochs of three steps and three batches of test images, the last ones smaller.
STEPS, EPOCHS = 3, 2
SMALL = [
    *("--config=configs/base.yaml", "--data=Digits", "--data.init_args.train_size=90"),
    *("--data.init_args.batch_size=32", "--data.init_args.eval_batch_size=150", "--model.milestones=[1]"),
    *("--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"),
    *("--trainer.use_distributed_sampler=false", f"--trainer.max_epochs={EPOCHS}"),
]
VANILLA = ["--model.student=resnet8"]
# A checkpoint after every step.
EVERY_STEP = ["--trainer.callbacks+=ickd_pl.runs.StepCheckpoint", "--trainer.callbacks.minutes=1e-6"]
TWO = ["--trainer.devices=2", "--data.init_args.eval_batch_size=151"]
# Hooks, with how often they run before the signal: each step's, those of evaluations, of saves and of epochs.
MOMENTS = [
    *(f"{hook}:{i}" for hook in ("on_train_batch_start", "on_train_batch_end") for i in range(EPOCHS * STEPS)),
    *(f"on_before_optimizer_step:{i}" for i in range(EPOCHS * STEPS)),
    *(f"on_validation_batch_end:{i}" for i in range(EPOCHS * 3)),
    *(f"{hook}:{i}" for hook in ("on_validation_start", "on_validation_end", "on_train_epoch_end") for i in (0, 1)),
    *(f"on_save_checkpoint:{i}" for i in range(EPOCHS * STEPS)),
    *("setup:0", "on_fit_start:0", "on_train_start:0", "on_train_epoch_start:0", "on_train_epoch_start:1"),
]
# Before a checkpoint's bytes are flushed, and before the file gets its name.
SAVES = [f"save:{i}" for i in range(2 * EPOCHS * STEPS)]
CODES = {"SIGTERM": 143, "SIGINT": 130, "SIGUSR1": 138, "SIGKILL": -9}


def fit(root: str, *args: str) -> list[str]:
    """Arguments of a tiny ``fit``."""
    return ["fit", *SMALL, f"--trainer.default_root_dir={root}", *args]


def sending(when: str, *signals: str, rank: int = 0) -> list[str]:
    """Arguments for signals at a moment; not sent in a process with NO_FAULTS in its environment."""
    at = [f"--trainer.callbacks.when={when}", f"--trainer.callbacks.signals=[{','.join(signals)}]"]
    return ["--trainer.callbacks+=tests.runs.faults.SignalAt", *at, f"--trainer.callbacks.rank={rank}"]


def killing(when: str) -> list[str]:
    """Arguments for a kill at a moment, also at ``save:N``: while a checkpoint is written."""
    hook, _, count = when.partition(":")
    if hook != "save":
        return sending(when, "SIGKILL")
    saving = ["--trainer.callbacks+=tests.runs.faults.SignalWhileSaving", "--trainer.callbacks.signals=[SIGKILL]"]
    return [*saving, f"--trainer.callbacks.skip={count}"]


def folder(root: str | Path) -> Path:
    """The only run folder in a root."""
    (path,) = Path(root).resolve().glob("**/seed_0")
    return path


def teacher_of(forked: Forked, root: str = "teacher") -> list[str]:
    """Train a tiny teacher in the current folder; arguments for a pair that it teaches."""
    made = forked.run(*fit(root, "--model.student=resnet14", "--trainer.max_epochs=1"))
    assert made.status == 0, made.err
    weights = folder(root) / "checkpoints" / "last.ckpt"
    return ["--model.student=resnet8", "--model.teacher=resnet14", f"--model.teacher_weights={weights}"]


def as_torchrun(forked: Forked, *args: str, of: Iterable[int] = (0, 1), **environment: str) -> list[Started]:
    """Start two ranks as torchrun's agent does, without the agent."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    shared = {
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
        "GROUP_RANK": "0",
        "TORCHELASTIC_RUN_ID": "tests",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
        **environment,
    }
    return [forked.start(*args, RANK=str(rank), LOCAL_RANK=str(rank), **shared) for rank in of]


def ended(started: Iterable[Started]) -> list[Outcome]:
    return [each.wait() for each in started]


def torchrun(*args: str, **environment: str) -> subprocess.Popen[str]:
    """Two ranks under torchrun's agent."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--master_addr=127.0.0.1"]
    return _open([*command, f"--master_port={_free_port()}", str(REPOSITORY / "cli.py"), *args], environment)


def launched(*args: str, **environment: str) -> subprocess.Popen[str]:
    """A command in a new process, which starts its other ranks itself."""
    return _open([sys.executable, str(REPOSITORY / "cli.py"), *args], environment)


def _open(command: list[str], environment: dict[str, str]) -> subprocess.Popen[str]:
    inherited = {k: v for k, v in os.environ.items() if k not in ("PL_GLOBAL_SEED", "PL_SEED_WORKERS")}
    return subprocess.Popen(
        command, env={**inherited, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1", **environment},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def left_of(session: int) -> list[int]:
    """The processes of a session that still run; a process started here leads a session of its own."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, _, own = path.read_text().rpartition(")")[2].split()[:4]
        except OSError:  # it has just ended
            continue
        if int(own) == session and state != "Z":
            found.append(int(path.parent.name))
    return found


def kill_session(session: int) -> None:
    """End what is left of a session."""
    for pid in left_of(session):
        os.kill(pid, signal.SIGKILL)


def stopped_and_continued(
    forked: Forked, whole: Path, root: str, args: list[str], when: str, name: str
) -> tuple[Outcome, Outcome]:
    """Stop a run by a signal at a moment and continue it; it must end as the run ``whole`` did, bit for bit."""
    command = fit(root, *args, *(killing(when) if name == "SIGKILL" else sending(when, name)))
    first = forked.start(*command)
    stopped = first.wait()
    assert left_of(first.pid) == []
    again = forked.run(*command, NO_FAULTS="1")
    assert again.status == 0, (when, name, again.err)
    assert_same_run(whole, folder(root))
    return stopped, again


def random_moment(kind: str, number: int, of: Sequence[str] = (*MOMENTS, *SAVES)) -> tuple[str, str]:
    """A moment, and the seed that it comes from: ``RELIABILITY_SEED``, or the time."""
    seed = os.environ.get("RELIABILITY_SEED") or str(int(time.time()))
    when = random.Random(f"{seed} {kind} {number}").choice(of)
    print(f"RELIABILITY_SEED={seed} {kind} {number}: {when}")
    return when, f"RELIABILITY_SEED={seed}: {when}"


def whole_of_two_ranks(forked: Forked, factory: pytest.TempPathFactory, name: str, args: list[str]) -> Path:
    """The folder of an uninterrupted run on two ranks, made once for all tests."""

    def make(root: Path) -> None:
        os.chdir(root)
        assert [each.status for each in ended(as_torchrun(forked, *fit("out", *args, *TWO)))] == [0, 0]

    return folder(made_once(factory, name, make))


def whole_run(forked: Forked, root: str, args: list[str]) -> Path:
    """The folder of an uninterrupted run."""
    outcome = forked.run(*fit(root, *args))
    assert outcome.status == 0, outcome.err
    assert rows_of(folder(root))
    return folder(root)
