"""``bench run`` when something goes wrong: interruptions, changes in between, divergence. Nothing is mixed or lost."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ickd_pl.benchmark.plan import Benchmark
from ickd_pl.benchmark.records import read_started
from ickd_pl.errors import UserError
from ickd_pl.runs import EpochRecord
from ickd_pl.runs.pack_folder import PackRecord
from ickd_pl.strategies import SP
from tests.benchmark.helpers import quick, refused, results, run
from tests.runs.helpers import Forked, assert_same_run, cli, rows_of, snapshot

KD = Path("out/cells/resnet20_resnet8/kd/seed_0")
TEACHER = Path("out/cells/teachers/resnet20/seed_0")
Stop = Callable[..., None]


def small(**changes: Any) -> str:
    """A benchmark file: a teacher of two epochs, then vanilla and kd in a pack, two epochs each."""
    teachers = {
        "get": "train",
        "data": {"init_args": {"train_size": 128}},
        "trainer": {"max_epochs": 2},
        "model": {"milestones": []},
    }
    return quick(**{"methods": ["vanilla", "kd"], "seeds": [0], "teachers": teachers, **changes})


@pytest.fixture
def stop_after() -> Iterator[Stop]:
    """Simulate Ctrl-C right after the n-th checkpoint by a kind of record."""
    handler = signal.getsignal(signal.SIGINT)
    with pytest.MonkeyPatch.context() as patch:

        def stop(kind: type = EpochRecord, count: int = 1) -> None:
            patch.undo()
            original, seen = kind.on_train_epoch_end, []

            def on_train_epoch_end(self: Any, *args: Any) -> None:
                original(self, *args)
                seen.append(1)
                if len(seen) == count:
                    raise KeyboardInterrupt

            patch.setattr(kind, "on_train_epoch_end", on_train_epoch_end)
            stopped = run()
            assert stopped.status == 130 and "stopped by Ctrl-C: run the same command to resume" in stopped.err
            patch.undo()
            signal.signal(signal.SIGINT, handler)  # Lightning has disabled it

        yield stop


def other_code(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ickd_pl.benchmark.folder.code_hash", lambda: "0" * 64)


def result(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((path / "result.json").read_text())
    return content


# -- interrupted, and changed before resuming --------------------------------------------------------------------------


@pytest.mark.reliability
def test_a_half_trained_teacher_has_no_hash(stop_after: Stop) -> None:
    """A shard that starts then must not use the unfinished teacher."""
    small()
    stop_after()
    from ickd_pl.benchmark.teachers import Teachers

    teachers = Teachers(Benchmark.read("short.yaml"), Path("out"), print)
    assert TEACHER.joinpath("checkpoints/last.ckpt").is_file() and teachers.hash_of("resnet20") is None
    assert run().status == 0
    assert teachers.hash_of("resnet20") == result(KD)["teacher_hash"] == result(TEACHER)["teacher_hash"]
    assert run().status == 0


@pytest.mark.reliability
def test_a_pack_resumed_with_different_code_is_marked(stop_after: Stop, monkeypatch: pytest.MonkeyPatch) -> None:
    small()
    stop_after(PackRecord)
    before = snapshot(Path("out/packs"))
    other_code(monkeypatch)
    shutil.rmtree(TEACHER.parent)  # its result is of the original code
    message = refused("run", "--config", "short.yaml", "--output", "out")
    assert "kd/seed_0, half done, was trained with different code" in message or "vanilla/seed_0, half done" in message
    assert snapshot(Path("out/packs")) == before
    monkeypatch.setattr("ickd_pl.runs.machine.versions", lambda: {"torch": "9"})  # another machine, too
    assert run("--accept-code").status == 0
    assert result(KD)["accepted_code"] is True and result(KD)["code_hash"] == "0" * 64
    pieces = [(piece["first"], piece["last"]) for piece in result(KD)["pieces"]]
    assert pieces == [(1, 1), (2, 2)] and result(KD)["versions"] == {"torch": "9"} and "pieces" not in result(TEACHER)
    assert "Not trained in one place: 2 runs" in Path("out/report.md").read_text()
    started = read_started(KD)
    assert started is not None and len(started.codes) == 2
    assert "MIXED CODE" in Path("out/report.md").read_text()


@pytest.mark.reliability
def test_a_result_that_was_deleted_does_not_make_old_training_new(monkeypatch: pytest.MonkeyPatch) -> None:
    small(pack=False)
    assert run().status == 0
    (KD / "result.json").unlink()
    other_code(monkeypatch)
    assert "was trained with different code" in refused("run", "--config", "short.yaml", "--output", "out")
    assert not (KD / "result.json").exists()


@pytest.mark.reliability
def test_a_choice_is_not_mixed_either(stop_after: Stop, monkeypatch: pytest.MonkeyPatch) -> None:
    small(methods=["kd"], choices={"kd": {"KD.temperature": [1.0, 8.0]}}, val_size=100)
    stop_after(EpochRecord, 4)  # two epochs of the teacher, two of the first candidate
    assert Path("out/choices/resnet20_resnet8/kd/seed_0/0/identity.json").is_file()
    before = snapshot(Path("out/choices"))
    shutil.rmtree(TEACHER.parent)
    other_code(monkeypatch)
    message = refused("run", "--config", "short.yaml", "--output", "out")
    assert "run 0 of the choice for resnet20_resnet8/kd/seed_0 was trained with different code" in message
    assert "move out/choices/resnet20_resnet8/kd/seed_0 away" in message
    assert snapshot(Path("out/choices")) == before
    shutil.rmtree("out/choices/resnet20_resnet8/kd/seed_0")
    assert run().status == 0


@pytest.mark.reliability
def test_a_method_that_is_added_leaves_a_half_done_pack_its_epochs(
    stop_after: Stop, monkeypatch: pytest.MonkeyPatch
) -> None:
    small()
    assert run().status == 0
    Path("out").rename("whole")
    stop_after(PackRecord)
    assert len(rows_of(KD)) == 1
    small(methods=["sp", "kd", "vanilla"])
    trained: list[tuple[list[str], int]] = []
    original = PackRecord.on_train_epoch_start

    def note(self: PackRecord, trainer: Any, pack: Any) -> None:
        trained.append((pack.names, trainer.current_epoch))
        original(self, trainer, pack)

    monkeypatch.setattr(PackRecord, "on_train_epoch_start", note)
    assert run().status == 0
    assert trained == [(["vanilla", "kd"], 1), (["sp"], 0), (["sp"], 1)]
    for name in ("vanilla", "kd"):
        path = Path("cells/resnet20_resnet8", name, "seed_0")
        assert_same_run("out" / path, "whole" / path)
    assert not list(Path("out/packs").rglob("*.ckpt"))


@pytest.mark.reliability
def test_a_damaged_pack_checkpoint_is_reported_and_the_previous_one_is_used(stop_after: Stop) -> None:
    small(trainer={"max_epochs": 3})
    assert run().status == 0
    Path("out").rename("whole")
    stop_after(PackRecord, 2)
    path = Path("out/packs/resnet20_resnet8/seed_0/pack.ckpt")
    path.write_bytes(path.read_bytes()[:5000])
    outcome = run()
    assert outcome.status == 0
    assert outcome.err.count(f"warning: {path} is removed: ") == 1
    assert_same_run(KD, Path("whole") / KD.relative_to("out"))


@pytest.mark.reliability
def test_sigterm_has_its_exit_status_and_one_line(forked: Forked) -> None:
    small(trainer={"max_epochs": 200})
    process = forked.start("bench", "run", "--config", "short.yaml", "--output", "out")
    deadline = time.monotonic() + 180
    while not Path("out/packs/resnet20_resnet8/seed_0/pack.ckpt").exists():
        assert time.monotonic() < deadline, process.text()
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGTERM)
    outcome = process.wait()
    assert outcome.status == 143
    assert outcome.err.strip().splitlines()[-1] == "stopped by SIGTERM: run the same command to resume"


# -- losses that are not finite --------------------------------------------------------------------------------------


def test_a_failed_teacher_trains_no_student() -> None:
    small(teachers={"get": "train", "model": {"lr": 1e18, "milestones": []}, "trainer": {"max_epochs": 1}})
    outcome = run()
    assert outcome.status == 2
    assert "its teacher resnet20 failed" in outcome.err.strip().splitlines()[-1]
    assert list(results(Path("out"))) == ["teachers/resnet20/seed_0"]
    assert Path("out/report.md").is_file()
    shutil.rmtree(TEACHER.parent)  # as the message advises; the benchmark file may then change
    assert run().status == 2


def test_members_that_all_fail_are_failed_cells() -> None:
    small(
        model={"lr": 1e18, "milestones": []},
        teachers={"get": "train", "model": {"lr": 0.05}, "trainer": {"max_epochs": 1}},
    )
    outcome = run()
    assert outcome.status == 0, outcome.err
    found = results(Path("out"))
    assert {found[f"resnet20_resnet8/{m}/seed_0"]["status"] for m in ("vanilla", "kd")} == {"failed"}
    assert "became infinite or NaN" in found["resnet20_resnet8/kd/seed_0"]["reason"]


@pytest.mark.reliability
def test_killed_after_the_last_epoch_a_stopped_member_stays_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    small(methods=["vanilla", "sp"])
    monkeypatch.setattr(SP, "loss", lambda self, student, *_: student.logits.sum() * float("nan"))

    def kill(*_: Any) -> None:
        raise RuntimeError("killed")

    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="killed"):
        patch.setattr("ickd_pl.benchmark.runner.Runner._finish", lambda self, cell, *a: kill() if cell.method else None)
        patch.setattr("ickd_pl.benchmark.runner.Runner._run_teacher", teacher_alone)
        run()
    assert Path("out/packs/resnet20_resnet8/seed_0/pack.ckpt").is_file()
    assert run().status == 0
    found = results(Path("out"))
    assert found["resnet20_resnet8/vanilla/seed_0"]["status"] == "done"
    assert found["resnet20_resnet8/sp/seed_0"]["status"] == "failed"


def teacher_alone(runner: Any, cell: Any) -> None:
    """Train the teacher as usual, although ``_finish`` is patched."""
    from ickd_pl.benchmark.cells import Job, train_alone
    from ickd_pl.benchmark.records import write_result
    from ickd_pl.benchmark.result import make_result

    folder = runner.folder
    folder.mark_started(cell, folder.cell_folder(cell))
    outcome = train_alone(Job(cell, folder.args(cell), folder.cell_folder(cell)))
    found = make_result(folder, cell, outcome, folder.identity(cell), folder.benchmark.recipe(cell), None)
    write_result(folder.cell_folder(cell), found)


# -- corrected files -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "needle"),
    [
        ({"trainer": {"max_epochs": 2, "max_epoch": 2}}, "max_epoch"),
        ({"trainer": {"max_epochs": 2, "precision": "bf17"}}, "precision"),
        ({"data": {"class_path": "Digits", "init_args": {"train_sice": 64}}}, "train_sice"),
        ({"model": {"milestones": [1], "momentum": 2}}, "momentum"),
    ],
)
def test_a_setting_that_is_not_accepted_is_one_line_before_anything_is_written(
    change: dict[str, Any], needle: str
) -> None:
    outcome = cli("bench", "run", "--config", small(**change), "--output", "out")
    assert outcome.status == 2
    lines = outcome.err.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: benchmark quick, cell ") and needle in lines[0]
    assert not Path("out").exists()


@pytest.mark.reliability
def test_teacher_floor_and_paths_may_be_changed() -> None:
    small(teachers={"weights": {"resnet20": "nowhere.pth"}})
    assert "nowhere.pth for resnet20 does not exist" in refused("run", "--config", "short.yaml", "--output", "out")
    teachers = {"get": "train", "trainer": {"max_epochs": 1}, "model": {"milestones": []}}
    small(teachers={**teachers, "floor": 99.9})
    assert "below" in refused("run", "--config", "short.yaml", "--output", "out")
    before = snapshot(TEACHER)
    small(teachers={**teachers, "floor": 5.0})
    outcome = run()
    assert outcome.status == 0, outcome.err
    assert snapshot(TEACHER) == before


@pytest.mark.reliability
def test_a_deleted_benchmark_file_is_recreated() -> None:
    small()
    assert run().status == 0
    before = results(Path("out"))
    Path("out/benchmark.yaml").write_text("}{")
    assert "delete it, and `bench run --config FILE" in refused("run", "--config", "short.yaml", "--output", "out")
    Path("out/benchmark.yaml").unlink()
    Path("out/.benchmark.yaml.4711.tmp").write_text("of a killed process")
    assert run().status == 0
    assert results(Path("out")) == before
    small(trainer={"max_epochs": 3})
    Path("out/benchmark.yaml").unlink()
    assert "used different settings" in refused("run", "--config", "short.yaml", "--output", "out")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("result.json", "{"),
        *(
            pytest.param(*each, marks=pytest.mark.reliability)
            for each in (("result.json", "5"), ("identity.json", "{}"))
        ),
    ],
)
def test_a_damaged_file_of_a_cell(name: str, text: str) -> None:
    small()
    KD.mkdir(parents=True)
    shutil.rmtree("out")
    assert run().status == 0
    (KD / "result.json").unlink()
    (KD / name).write_text(text)
    message = refused("run", "--config", "short.yaml", "--output", "out")
    assert f"{KD / name} is damaged" in message and f"move {KD} away" in message
    KD.rename("away")
    assert run().status == 0


@pytest.mark.reliability
def test_status_of_a_cell_whose_table_was_cut_short() -> None:
    small()
    assert run().status == 0
    (KD / "result.json").unlink()
    (KD / "metrics.csv").write_text("epoch,seconds\n1,0.5\nx\x00")
    outcome = cli("bench", "status", "--output", "out")
    assert outcome.status == 0 and "half done resnet20_resnet8/kd/seed_0 epoch 1 of 2" in outcome.out


# -- invalid settings ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "needles"),
    [
        ({"model": {"strategies": ["KD"]}}, ["model: strategies cannot be set here", "methods"]),
        ({"model": {"student": "resnet14"}}, ["model: student", "the pairs name it"]),
        ({"model": {"ce_weight": 0.5}}, ["model: ce_weight"]),
        ({"teachers": {"model": {"teacher_floor": 5}}}, ["teachers, model: teacher_floor", "teachers.floor"]),
        ({"trainer": {"callbacks": []}}, ["trainer: callbacks cannot be set here"]),
        ({"trainer": {"max_time": "00:00:00:02"}}, ["max_time", "max_epochs"]),
        ({"trainer": {"max_epochs": "abc"}}, ["max_epochs must be a whole number from 1, got 'abc'"]),
        ({"trainer": {"max_epochs": None}}, ["max_epochs"]),
        ({"trainer": {"max_epochs": 0}}, ["max_epochs"]),
        ({"trainer": {"max_epochs": 3, "check_val_every_n_epoch": 2}}, ["the last of 3 epochs must be evaluated"]),
        ({"trainer": {"max_epochs": 2, "accumulate_grad_batches": 2}}, ["accumulate_grad_batches", "pack to false"]),
        ({"data": {"class_path": "Digits", "init_args": {"val_size": 100}}}, ["data: val_size cannot be set here"]),
        ({"teachers": {"weights": {"resnet20": 5}}}, ["resnet20 must be a file's path, got 5"]),
        ({"teachers": {"weights": {"resnet99": "x.pth"}}}, ["no pair has the teacher resnet99", "resnet20"]),
        ({"choices": {"kd": {"KD.temperature": 4}}, "val_size": 9}, ["choices: kd must be a mapping"]),
        ({"choices": {"kd": [2, 4]}, "val_size": 9}, ["choices: kd must be a mapping"]),
        ({"choices": {"kd": {"KD.temperature": []}}, "val_size": 9}, ["choices: kd must be a mapping"]),
        ({"choices": {"kd": {}}, "val_size": 9}, ["choices: kd must be a mapping"]),
        ({"choices": {"kd": {"KD.temprature": [2]}}, "val_size": 9}, ["KD.temprature", "did you mean temperature"]),
        ({"choices": {"kd": {"KD.temperature": ["x"]}}, "val_size": 9}, ["choices, kd, {'KD.temperature': 'x'}"]),
        ({"choices": {"kd": {"temperature": [2]}}, "val_size": 9}, ["give Class.argument (KD)"]),
        ({"choices": {"vanilla": {"KD.temperature": [2]}}, "val_size": 9}, ["none: it has no strategies"]),
    ],
)
def test_a_benchmark_file_with_invalid_settings(change: dict[str, Any], needles: list[str]) -> None:
    small(**change)
    with pytest.raises(UserError) as caught:
        Benchmark.read("short.yaml")
    assert all(needle in str(caught.value) for needle in needles), caught.value


def test_a_file_that_is_not_there() -> None:
    message = refused("plan", "--config", "missing.yaml")
    assert "config file missing.yaml does not exist" in message and "configs/benchmarks/quick.yaml" in message
    assert "configs/pairs" not in message


# -- plan ------------------------------------------------------------------------------------------------------------


def test_a_plan_counts_choices_and_ignores_the_floor() -> None:
    small(choices={"kd": {"KD.temperature": [1.0, 2.0, 4.0]}}, val_size=100)
    counted = cli("bench", "plan", "--config", "short.yaml", "--no-timing")
    assert "kd/seed_0: 2 epochs x 2 steps, 4 times (a choice among 3)" in counted.out
    # The teacher 2 x 4 steps (128 images), vanilla 2 x 2, kd four times 2 x 2.
    assert "28 steps of a student" in counted.out
    small(teachers={"get": "train", "floor": 99.0})
    timed = cli("bench", "plan", "--config", "short.yaml")
    assert timed.status == 0, timed.err
    assert "estimate on this machine" in timed.out


def test_the_commands_of_a_plan_work_in_their_order() -> None:
    small(pack=False)
    planned = cli("bench", "plan", "--config", "short.yaml", "--output", "out", "--no-timing", "--commands")
    lines = [line.split()[2:] for line in planned.out.splitlines() if line.startswith("    python cli.py")]
    assert len(lines) == 3
    for args in (lines[0], lines[2]):
        outcome = cli(*args)
        assert outcome.status == 0, outcome.err
    assert run().status == 0  # next to the files of the commands
    assert_same_run(KD, Path("out/alone/digits/resnet20_resnet8/kd/seed_0"))


# -- precision -------------------------------------------------------------------------------------------------------


def test_predictions_are_the_ones_that_were_counted() -> None:
    small(trainer={"max_epochs": 2, "precision": "bf16-mixed"})
    assert run().status == 0
    assert result(KD)["precision"] == "bf16-mixed" and result(KD)["device"].startswith("cpu")
    assert "its predictions are" not in Path("out/report.md").read_text()


def test_no_checkpoint_is_left_in_a_folder_that_all_share(monkeypatch: pytest.MonkeyPatch) -> None:
    """On SLURM, Lightning would write one on a signal, and the next run would start from it."""
    from lightning_fabric.plugins.environments.slurm import SLURMEnvironment

    from ickd_pl.benchmark.cells import CellCLI

    for name, value in {"SLURM_NTASKS": "1", "SLURM_JOB_NAME": "job", "SLURM_PROCID": "0", "SLURM_JOB_ID": "1"}.items():
        monkeypatch.setenv(name, value)
    benchmark = Benchmark.read(small())
    args = benchmark.args(benchmark.cells[0], None, Path(), {})
    trainer: Any = CellCLI(args, Path("cell"), builds_only=True).trainer
    environment = trainer._accelerator_connector.cluster_environment
    assert isinstance(environment, SLURMEnvironment) and environment.auto_requeue is False
