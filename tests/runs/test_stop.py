"""Signals: a fit stops after its step on all ranks with one checkpoint, and the same command goes on from there.

Rows 2, 7, 8 and 9 of docs/reliability.md; real processes and signals.
"""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ickd_pl.runs import signals, stop
from ickd_pl.training.speed import can_compile
from tests.benchmark.helpers import quick
from tests.runs.helpers import QUIET, Forked, assert_same_run, load, made_once, snapshot
from tests.runs.moments import (
    CODES,
    EVERY_STEP,
    STEPS,
    TWO,
    VANILLA,
    as_torchrun,
    ended,
    fit,
    folder,
    kill_session,
    launched,
    left_of,
    sending,
    stopped_and_continued,
    torchrun,
    whole_of_two_ranks,
    whole_run,
)

GOES_ON = ": run the same command to resume"
Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture(scope="module")
def whole(forked: Forked, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run."""
    root = made_once(tmp_path_factory, "stop", lambda root: _made(forked, root, VANILLA))
    return folder(root)


@pytest.fixture(scope="module")
def whole_of_two(forked: Forked, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run on two ranks."""
    return whole_of_two_ranks(forked, tmp_path_factory, "stop_two", VANILLA)


def _made(forked: Forked, root: Path, args: list[str]) -> None:
    os.chdir(root)
    whole_run(forked, "out", args)


# -- one process -----------------------------------------------------------------------------------------------------


LAST_STEPS = {
    "limited": (["--trainer.limit_train_batches=2"], "on_train_batch_end:3"),
    "not evaluated": (["--trainer.check_val_every_n_epoch=2"], f"on_train_batch_end:{STEPS - 1}"),
    "averaged": (["--trainer.callbacks+=EMAWeightAveraging"], f"on_train_batch_end:{STEPS - 1}"),
    "max_steps": ([f"--trainer.max_steps={STEPS}"], f"on_train_batch_end:{STEPS - 1}"),
    "overfit": (["--trainer.overfit_batches=2"], "on_train_batch_end:1"),
    "unevaluated": (["--trainer.limit_val_batches=0"], f"on_train_batch_end:{STEPS - 1}"),
}


@pytest.mark.parametrize(
    "case",
    [*list(LAST_STEPS)[:2], *(pytest.param(case, marks=pytest.mark.reliability) for case in list(LAST_STEPS)[2:])],
)
def test_a_signal_in_the_last_step_of_an_epoch(forked: Forked, case: str) -> None:
    """The checkpoint of the epoch is written before the run stops, or it ends: nothing of the epoch is lost."""
    more, when = LAST_STEPS[case]
    whole = whole_run(forked, "whole", [*VANILLA, *more])
    stopped, _ = stopped_and_continued(forked, whole, "out", [*VANILLA, *more], when, "SIGTERM")
    assert stopped.status == (0 if case == "max_steps" else 143)
    assert (folder("out") / "checkpoints" / "last.ckpt").is_file()


@pytest.mark.parametrize(
    ("when", "name"),
    [
        ("on_train_batch_end:0", "SIGTERM"),
        ("on_validation_batch_end:1", "SIGINT"),
        ("on_train_batch_start:4", "SIGUSR1"),
    ],
)
def test_a_signal_stops_after_the_step(forked: Forked, whole: Path, when: str, name: str) -> None:
    """Its exit status, one line, one checkpoint; the same command ends as an uninterrupted run, bit for bit."""
    stopped, again = stopped_and_continued(forked, whole, "out", VANILLA, when, name)
    said = "Ctrl-C" if name == "SIGINT" else name
    assert stopped.status == CODES[name]
    assert [line for line in stopped.err.splitlines() if "stopped" in line] == [f"stopped by {said}{GOES_ON}"]
    assert "Traceback" not in stopped.err
    assert (
        f"continuing {Path('out') / folder('out').relative_to(Path('out').resolve())}/checkpoints/last.ckpt"
        in again.out
    )


def test_before_the_first_update_there_is_nothing_to_save(forked: Forked, whole: Path) -> None:
    """It ends at once, also where that step is being compiled; a run that continues keeps its checkpoint."""
    stopped, _ = stopped_and_continued(forked, whole, "out", VANILLA, "on_train_batch_start:0", "SIGINT")
    assert stopped.status == 130 and "Traceback" not in stopped.err, stopped.err
    assert stopped.err.strip().splitlines()[-1] == f"stopped by Ctrl-C{GOES_ON}"


def test_a_signal_in_the_last_epochs_end_lets_the_run_finish(forked: Forked, whole: Path) -> None:
    stopped = forked.run(*fit("out", *VANILLA, *sending("on_train_epoch_end:1", "SIGTERM")))
    assert (folder("out") / "finished").is_file()
    assert_same_run(whole, folder("out"))
    assert stopped.status in (0, 143)


def test_signals_while_saving_wait_for_its_end(forked: Forked, whole: Path) -> None:
    """The first signal stops the run after the save; a second one and Ctrl-C during the save change nothing."""
    first = ["--trainer.callbacks+=tests.runs.faults.SignalWhileSaving", "--trainer.callbacks.signals=[SIGTERM,SIGINT]"]
    command = fit("out", *VANILLA, *first, *sending("on_train_batch_end:1", "SIGTERM", "SIGINT"))
    stopped = forked.run(*command)
    assert stopped.status == 143, stopped.err
    assert stopped.err.strip().splitlines()[-1] == f"stopped by SIGTERM{GOES_ON}"
    files = sorted(path.name for path in (folder("out") / "checkpoints").iterdir())
    assert files == ["last.ckpt"], "one checkpoint, and nothing partial"
    assert load(folder("out") / "checkpoints" / "last.ckpt")["global_step"] == 2
    assert forked.run(*command, NO_FAULTS="1").status == 0
    assert_same_run(whole, folder("out"))


def test_a_signal_during_an_epochs_own_save(forked: Forked, whole: Path) -> None:
    during = [
        "--trainer.callbacks+=tests.runs.faults.SignalWhileSaving",
        "--trainer.callbacks.signals=[SIGINT,SIGTERM]",
    ]
    stopped = forked.run(*fit("out", *VANILLA, *during))
    assert stopped.status == 130, stopped.err
    assert load(folder("out") / "checkpoints" / "last.ckpt")["global_step"] == 4, "one step after the save"
    assert forked.run(*fit("out", *VANILLA, *during), NO_FAULTS="1").status == 0
    assert_same_run(whole, folder("out"))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "to_all"), [("SIGTERM", False), ("SIGUSR1", False), ("SIGINT", True)])
def test_a_signal_while_the_first_step_is_compiled(name: str, to_all: bool) -> None:
    """Also to the compilers, as a terminal's Ctrl-C: it ends long before the compilation would, and none is left."""
    if not can_compile("cpu"):
        pytest.skip("no compiler")
    command = fit("out", *VANILLA, "--model.compile=true")
    process = launched(*command, TORCHINDUCTOR_CACHE_DIR=str(Path("cache").resolve()))
    try:
        deadline = time.monotonic() + 400
        while not (list(Path("out").rglob("config.yaml")) and len(left_of(process.pid)) > 1):
            assert process.poll() is None and time.monotonic() < deadline, process.communicate()
            time.sleep(0.02)
        (os.killpg if to_all else os.kill)(process.pid, getattr(signal, name))
        _, err = process.communicate(timeout=60)
        assert process.returncode == CODES[name], err
        assert "Traceback" not in err and err.strip().splitlines()[-1].endswith(GOES_ON)
        time.sleep(1)
        assert left_of(process.pid) == []
        assert not list(Path("out").rglob("*.ckpt")), "nothing is left that the same command would refuse"
    finally:
        kill_session(process.pid)


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGUSR1"])
def test_a_signal_during_a_command_without_a_fit(forked: Forked, whole: Path, name: str) -> None:
    """It ends at once: its status, one line, nothing changed."""
    before = snapshot(whole)
    callback = sending("on_validation_batch_end:0", name)
    last = whole / "checkpoints" / "last.ckpt"
    outcome = forked.run("validate", f"--ckpt_path={last}", "--data.init_args.eval_batch_size=150", *QUIET, *callback)
    assert outcome.status == CODES[name], outcome.err
    assert "Traceback" not in outcome.err
    assert snapshot(whole) == before


def test_a_trainer_from_python_puts_the_old_handlers_back() -> None:
    import pytorch_lightning as pl
    from pytorch_lightning.demos.boring_classes import BoringModel

    before = {number: signal.getsignal(number) for number in signals.SIGNALS}
    quiet: dict[str, Any] = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    trainer = pl.Trainer(
        max_steps=2, accelerator="cpu", enable_checkpointing=False, callbacks=[stop.SignalStop()], **quiet
    )
    trainer.fit(BoringModel())
    assert {number: signal.getsignal(number) for number in signals.SIGNALS} == before


def test_a_system_without_sigusr1(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on Windows: the other signals are handled, and nothing mentions the missing one."""
    usr1 = signal.SIGUSR1
    monkeypatch.delattr(signal, "SIGUSR1")
    monkeypatch.delattr(os, "fork", raising=False)
    spec: Any = importlib.util.spec_from_file_location("without", signals.__file__)
    without = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(without)
    assert usr1 not in without.SIGNALS and set(without.SIGNALS) == {signal.SIGTERM, signal.SIGINT}
    with without.handled_signals():
        assert without.handling()
    assert without.explain(without.Stopped(signal.SIGTERM)) == 143


# -- SLURM -----------------------------------------------------------------------------------------------------------

JOB = {"SLURM_JOB_ID": "4711", "SLURM_NTASKS": "1", "SLURM_JOB_NAME": "bash", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}


def scontrol(code: int = 0) -> dict[str, str]:
    """The environment of a SLURM job with a ``scontrol`` that writes down its arguments."""
    path = Path("bin/scontrol")
    path.parent.mkdir()
    path.write_text(f'#!/bin/sh\necho "$@" >> {Path.cwd()}/requeued\necho "no such job" >&2\nexit {code}\n')
    path.chmod(0o755)
    return {**JOB, "PATH": f"{path.parent.resolve()}:{os.environ['PATH']}"}


def test_slurms_warning_saves_and_requeues_once(forked: Forked, whole: Path) -> None:
    """Status 0 with a line, one file that is overwritten each time, and the next start finds it."""
    job = scontrol()
    for count, when in enumerate(("on_train_batch_end:1", "on_train_batch_end:2"), 1):
        command = fit("out", *VANILLA, *EVERY_STEP, *sending("on_train_batch_end:1", "SIGUSR1", "SIGUSR1"))
        stopped = forked.run(*command, **job)
        assert stopped.status == 0, (when, stopped.err)
        assert "job 4711 is requeued, and goes on from its last checkpoint" in stopped.out
        assert Path("requeued").read_text().splitlines() == ["requeue 4711"] * count
        files = sorted(path.name for path in Path("out").rglob("*.ckpt"))
        assert files in (["last.ckpt"], ["last.ckpt", "previous.ckpt"]), "the file is overwritten each time"
        assert not list(Path().glob("*.ckpt"))
    last = forked.run(*command, NO_FAULTS="1", **job)
    assert last.status == 0 and "continuing " in last.out
    assert_same_run(whole, folder("out"))
    assert Path("requeued").read_text().count("requeue") == 2


def test_a_requeue_that_fails(forked: Forked) -> None:
    stopped = forked.run(*fit("out", *VANILLA, *sending("on_train_batch_end:1", "SIGUSR1")), **scontrol(code=1))
    assert stopped.status == 138
    assert "warning: job 4711 is not requeued: scontrol requeue: no such job" in stopped.err
    assert stopped.err.strip().splitlines()[-1] == f"stopped by SIGUSR1{GOES_ON}"
    assert (folder("out") / "checkpoints" / "last.ckpt").is_file()


@pytest.mark.parametrize(
    ("settings", "asked"),
    [
        (JOB, ["requeue 4711"]),
        ({**JOB, "SLURM_ARRAY_JOB_ID": "4710", "SLURM_ARRAY_TASK_ID": "3"}, ["requeue 4710_3"]),
        ({**JOB, "SLURM_JOB_ID": "1; rm -r x"}, []),
    ],
    ids=["a job", "a task of an array", "no number"],
)
def test_what_is_requeued(monkeypatch: pytest.MonkeyPatch, settings: dict[str, str], asked: list[str]) -> None:
    for name, value in {**scontrol(), **settings, "PATH": f"{Path('bin').resolve()}:{os.environ['PATH']}"}.items():
        monkeypatch.setenv(name, value)
    assert signals.requeue() is bool(asked)
    assert (Path("requeued").read_text().splitlines() if asked else []) == asked


def test_without_scontrol(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    monkeypatch.setenv("PATH", str(Path.cwd()))
    monkeypatch.setattr("ickd_pl.runs.signals.rank", lambda: 0)
    assert signals.explain(signals.Stopped(signal.SIGUSR1)) == 138
    first, last = capsys.readouterr().err.strip().splitlines()
    assert first.startswith("warning: job 4711 is not requeued: scontrol: ")
    assert last == f"stopped by SIGUSR1{GOES_ON}"


# -- two ranks -------------------------------------------------------------------------------------------------------


def checked_two(forked: Forked, whole: Path, command: list[str], code: int) -> None:
    began = time.monotonic()
    ranks = as_torchrun(forked, *command)
    outcomes = ended(ranks)
    assert [each.status for each in outcomes] == [code, code], [each.err[-500:] for each in outcomes]
    assert time.monotonic() - began < 60
    assert [left_of(each.pid) for each in ranks] == [[], []]
    names = sorted(path.name for path in (folder("out") / "checkpoints").iterdir())
    assert names in (["last.ckpt"], ["last.ckpt", "previous.ckpt"])
    assert "".join(each.err for each in outcomes).count("stopped by ") == 1, "one rank tells"
    again = ended(as_torchrun(forked, *command, NO_FAULTS="1"))
    assert [each.status for each in again] == [0, 0], [each.err[-500:] for each in again]
    assert_same_run(whole, folder("out"))


def test_a_signal_to_the_second_of_two_ranks(forked: Forked, whole_of_two: Path) -> None:
    """Both ranks stop after the same step with one checkpoint, and go on to the same result."""
    checked_two(
        forked, whole_of_two, fit("out", *VANILLA, *TWO, *sending("on_train_batch_end:3", "SIGTERM", rank=1)), 143
    )


def test_the_second_of_two_ranks_is_killed(forked: Forked, whole_of_two: Path) -> None:
    """The first one ends by itself within 30 seconds, no checkpoint is broken, and the run continues."""
    command = fit("out", *VANILLA, *TWO, *EVERY_STEP, *sending("on_train_batch_end:4", "SIGKILL", rank=1))
    ranks = as_torchrun(forked, *command)
    assert ranks[1].wait().status == -9
    began = time.monotonic()
    first = ranks[0].wait()
    assert first.status not in (0, 2, 3) and time.monotonic() - began < 30
    assert load(folder("out") / "checkpoints" / "last.ckpt")["global_step"] >= 3
    again = ended(as_torchrun(forked, *command, NO_FAULTS="1"))
    assert [each.status for each in again] == [0, 0], [each.err[-500:] for each in again]
    assert_same_run(whole_of_two, folder("out"))


@pytest.mark.reliability
@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGUSR1"])
@pytest.mark.parametrize("when", ["on_train_batch_end:0", "on_validation_batch_end:2", "on_train_epoch_end:0"])
@pytest.mark.parametrize("rank", [0, 1])
def test_a_signal_to_one_of_two_ranks(forked: Forked, whole_of_two: Path, name: str, when: str, rank: int) -> None:
    """Any rank, signal and moment."""
    checked_two(forked, whole_of_two, fit("out", *VANILLA, *TWO, *sending(when, name, rank=rank)), CODES[name])


def _wait_for_step(path: Path, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while not (path.exists() and path.read_text().count("\n") >= 2):
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.02)


@pytest.mark.reliability
@pytest.mark.ddp
@pytest.mark.parametrize("target", ["rank 0", "rank 1", "all", "agent"])
@pytest.mark.parametrize("start", [launched, torchrun], ids=["launcher", "torchrun"])
def test_a_signal_under_either_launcher(forked: Forked, whole_of_two: Path, start: Start, target: str) -> None:
    """SIGTERM to a rank, to all, or to torchrun's agent: 143 (torchrun itself reports 1), one checkpoint, no orphan."""
    if start is launched and target == "agent":
        pytest.skip("there is no agent")
    slow = ["--trainer.callbacks+=tests.runs.faults.Slow", "--trainer.callbacks.folder=pids"]
    Path("pids").mkdir()
    process = start(*fit("out", *VANILLA, *TWO, *slow))
    pids = []
    for rank in (0, 1):
        _wait_for_step(Path(f"pids/{rank}"), process)
        pids.append(int(Path(f"pids/{rank}").read_text().split()[0]))
    began = time.monotonic()
    for pid in {"rank 0": pids[:1], "rank 1": pids[1:], "all": pids, "agent": [process.pid]}[target]:
        os.kill(pid, signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert time.monotonic() - began < 10
    if start is torchrun:
        # The agent that is stopped itself ends by an exception of its own, or by the signal.
        assert process.returncode in ((1, -15, 143) if target == "agent" else (1,)), err
    else:
        assert process.returncode == 143, err
    time.sleep(1)
    assert left_of(process.pid) == []
    assert [path.name for path in (folder("out") / "checkpoints").iterdir()] == ["last.ckpt"]
    assert (out + err).count("stopped by SIGTERM") == 1
    again = start(*fit("out", *VANILLA, *TWO, *slow), NO_FAULTS="1")
    _, err = again.communicate(timeout=200)
    assert again.returncode == 0, err
    assert_same_run(whole_of_two, folder("out"))


# -- bench and teachers ----------------------------------------------------------------------------------------------


def bench() -> list[str]:
    """A benchmark of a teacher and a pack of two."""
    quick(methods=["vanilla", "kd"], seeds=[0], trainer={"max_epochs": 2})
    return ["bench", "run", "--config", "short.yaml", "--output", "out"]


def assert_same_cells(one: Path, other: Path) -> None:
    for name in ("vanilla", "kd"):
        cell = Path(f"cells/resnet20_resnet8/{name}/seed_0")
        assert_same_run(one / cell, other / cell)


@pytest.fixture(scope="module")
def whole_bench(forked: Forked, tmp_path_factory: pytest.TempPathFactory) -> Path:
    def make(root: Path) -> None:
        os.chdir(root)
        outcome = forked.run(*bench())
        assert outcome.status == 0, outcome.err

    return made_once(tmp_path_factory, "stop_bench", make) / "out"


@pytest.mark.parametrize(
    ("when", "name"),
    [
        pytest.param("on_train_batch_end:1", "SIGTERM", marks=pytest.mark.reliability),
        pytest.param("on_validation_batch_end:1", "SIGINT", marks=pytest.mark.reliability),
        pytest.param("on_train_batch_start:3", "SIGUSR1", marks=pytest.mark.reliability),
        pytest.param("on_train_epoch_end:0", "SIGTERM", marks=pytest.mark.reliability),
    ],
)
def test_a_signal_in_a_pack(forked: Forked, whole_bench: Path, when: str, name: str) -> None:
    """The same statuses and line; the members end as without the break."""
    command = bench()
    stopped = forked.run(*command, SIGNAL_IN_PACK=f"{when} {name}")
    assert stopped.status == CODES[name], stopped.err
    assert stopped.err.strip().splitlines()[-1].endswith(GOES_ON)
    assert "Traceback" not in stopped.err
    again = forked.run(*command)
    assert again.status == 0, again.err
    assert_same_cells(whole_bench, Path("out"))


def test_a_signal_while_a_teacher_trains(forked: Forked) -> None:
    arguments = [word for word in fit("out") if word not in ("fit", "--config=configs/base.yaml")]
    command = [
        "teachers",
        "train",
        "resnet8",
        "--output",
        "t.pth",
        *arguments,
        *sending("on_train_batch_end:1", "SIGTERM"),
    ]
    stopped = forked.run(*command)
    assert stopped.status == 143, stopped.err
    assert stopped.err.strip().splitlines()[-1] == f"stopped by SIGTERM{GOES_ON}"
    assert not Path("t.pth").exists()
    again = forked.run(*command, NO_FAULTS="1")
    assert again.status == 0 and Path("t.pth").is_file(), again.err


def test_a_signal_while_a_teacher_is_fetched(forked: Forked) -> None:
    """It ends at once, and no part of the file is left under its name."""
    from tests.teachers.mirror import manifest, serving, weights

    with serving() as mirror:
        mirror.files["/a.pth"] = mirror.stalled(weights())
        command = ["teachers", "fetch", "resnet8", "--manifest", manifest({"resnet8": [f"{mirror.url}/a.pth"]})]
        started = forked.start(*command, "--checkpoints", "checkpoints")
        assert mirror.half.wait(60), started.text()
        os.kill(started.pid, signal.SIGTERM)
        outcome = started.wait()
    assert outcome.status == 143, outcome.err
    assert "Traceback" not in outcome.err
    assert not list(Path("checkpoints").rglob("*.pth"))
