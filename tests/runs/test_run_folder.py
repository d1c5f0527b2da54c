"""Whether a run starts, resumes, is finished or is refused."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import pytorch_lightning as pl

from ickd_pl.errors import UserError
from ickd_pl.runs.decide import differing, flat
from ickd_pl.runs.run_folder import EpochRecord, RunFolder
from tests.runs.faults import Stopped
from tests.runs.helpers import (
    Run,
    assert_same_run,
    cli,
    fit_args,
    load,
    rows_of,
    snapshot,
    student_args,
    subprocess_cli,
)

STOP = "--trainer.callbacks+=tests.runs.faults.StopBeforeEpoch"
STOP_EPOCH = "--trainer.callbacks.init_args.epoch="
KILL = "--trainer.callbacks+=tests.runs.faults.KillInEpoch"


def folder_in(root: Path) -> Path:
    return root / "digits/resnet20_resnet8/ickd_kd/seed_0"


def test_names_of_the_folder() -> None:
    root = Path("r")
    assert RunFolder.of(root, "digits", "a", "b", ["ickd", "kd"], 3).path == root / "digits/a_b/ickd_kd/seed_3"
    assert RunFolder.of(root, "digits", "a", "b", [], 0).path == root / "digits/a_b/vanilla/seed_0"
    assert RunFolder.of(root, "digits", None, "b", [], 0).path == root / "digits/b/vanilla/seed_0"


def test_settings_that_do_not_change_results_are_ignored() -> None:
    one = {
        "trainer": {"max_epochs": 3, "callbacks": [{"class_path": "TQDMProgressBar"}], "enable_progress_bar": True},
        "model": {},
        "data": {"init_args": {"eval_batch_size": 500}},
    }
    other = {"trainer": {"max_epochs": 3, "callbacks": None, "enable_progress_bar": False}, "model": {}}
    other["data"] = {"init_args": {"eval_batch_size": None}}
    assert differing(flat(one), flat(other)) == []


def test_differences_have_the_key_and_both_values() -> None:
    one = {"model": {"lr": 0.1, "strategies": [{"class_path": "KD", "init_args": {"weight": 1.0}}]}, "a": [1, 2]}
    other = {"model": {"lr": 0.2, "strategies": [{"class_path": "KD", "init_args": {"weight": 2.0}}]}, "b": None}
    assert differing(flat(one), flat(other)) == [
        "a: [1, 2] -> None",  # and null equals a missing setting
        "model.lr: 0.1 -> 0.2",
        "model.strategies[0].init_args.weight: 1.0 -> 2.0",
    ]


def test_a_finished_run_is_reported_and_unchanged(student: Run) -> None:
    before = snapshot(student.path)
    outcome = cli(*fit_args(student.root, student.args, epochs=3))
    assert outcome.status == 0, outcome.err
    assert "finished" in outcome.out
    assert str(student.last) in outcome.out
    assert snapshot(student.path) == before


@pytest.mark.parametrize(
    ("more", "needle"),
    [
        (["--model.lr=0.1"], "model.lr: 0.05 -> 0.1"),
        (["--trainer.max_epochs=4"], "trainer.max_epochs: 3 -> 4"),
        (["--data.init_args.batch_size=16"], "data.init_args.batch_size: 32 -> 16"),
        (["--model.strategies.init_args.temperature=2.0"], "model.strategies[1].init_args.temperature: 4.0 -> 2.0"),
    ],
)
def test_another_configuration_is_refused_and_nothing_changes(student: Run, more: list[str], needle: str) -> None:
    before = snapshot(student.path)
    outcome = cli(*fit_args(student.root, [*student.args, *more], epochs=3))
    assert outcome.status == 2
    assert outcome.err.startswith("error: ")
    assert needle in outcome.err
    assert "->" not in outcome.err.replace(needle, "").replace("(stored -> new)", "")
    assert snapshot(student.path) == before


def test_another_seed_is_another_folder(student: Run) -> None:
    outcome = cli(*fit_args(Path("out"), [*student.args, "--seed_everything=7", "--trainer.limit_train_batches=1"]))
    assert outcome.status == 0, outcome.err
    assert (folder_in(Path("out")).with_name("seed_7") / "checkpoints" / "last.ckpt").is_file()


@pytest.mark.parametrize("epochs_done", [1, 2])
def test_a_run_stopped_between_epochs_resumes_to_the_same_result(student: Run, epochs_done: int) -> None:
    root = Path("out")
    with pytest.raises(Stopped):
        cli(*fit_args(root, [*student.args, STOP, f"{STOP_EPOCH}{epochs_done}"], epochs=3))
    assert len(rows_of(folder_in(root))) == epochs_done
    outcome = cli(*fit_args(root, student.args, epochs=3))
    assert outcome.status == 0, outcome.err
    assert "continuing" in outcome.out
    assert_same_run(folder_in(root), student.path)


def test_a_checkpoint_passed_by_path_is_resumed(student: Run) -> None:
    with pytest.raises(Stopped):
        cli(*fit_args(Path("part"), [*student.args, STOP, f"{STOP_EPOCH}1"], epochs=3))
    part = folder_in(Path("part")) / "checkpoints" / "last.ckpt"
    before = snapshot(part.parent)
    outcome = cli(*fit_args(Path("out"), [*student.args, f"--ckpt_path={part}"], epochs=3))
    assert outcome.status == 0, outcome.err
    assert_same_run(folder_in(Path("out")), student.path)
    assert snapshot(part.parent) == before


def test_a_checkpoint_passed_by_path_overwrites_no_other_run(student: Run) -> None:
    before = snapshot(student.path)
    args = [*student.args, f"--ckpt_path={student.last}", "--model.lr=0.1"]
    outcome = cli(*fit_args(student.root, args, epochs=3))
    assert outcome.status == 2
    assert "model.lr: 0.05 -> 0.1" in outcome.err
    assert snapshot(student.path) == before


def test_a_run_killed_in_an_epoch_resumes_to_the_same_result(student: Run) -> None:
    root = Path("out")
    kill = [KILL, "--trainer.callbacks.init_args.epoch=2"]
    outcome = subprocess_cli(*fit_args(root, [*student.args, *kill], epochs=3))
    assert outcome.status == -9, outcome.err
    assert len(rows_of(folder_in(root))) == 2
    outcome = cli(*fit_args(root, student.args, epochs=3))
    assert outcome.status == 0, outcome.err
    assert_same_run(folder_in(root), student.path)


@pytest.mark.parametrize("epoch", [2, 3])
def test_rows_beyond_the_checkpoint_are_cut_back(student: Run, monkeypatch: pytest.MonkeyPatch, epoch: int) -> None:
    """For a run killed between an epoch's row and its checkpoint, also in the last epoch."""
    root, save, calls = Path("out"), pl.Trainer.save_checkpoint, []

    def fail(self: pl.Trainer, path: Path, **kwargs: object) -> None:
        calls.append(path)  # one in each epoch
        if len(calls) == epoch:
            raise Stopped
        save(self, path, **kwargs)  # type: ignore[arg-type]

    with monkeypatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(pl.Trainer, "save_checkpoint", fail)
        cli(*fit_args(root, student.args, epochs=3))
    metrics = folder_in(root) / "metrics.csv"
    assert len(rows_of(metrics.parent)) == epoch
    metrics.write_text(metrics.read_text() + metrics.read_text().splitlines()[-1] + "\n")
    with pytest.raises(Stopped):
        cli(*fit_args(root, [*student.args, STOP, f"{STOP_EPOCH}{epoch - 1}"], epochs=3))
    assert len(rows_of(metrics.parent)) == epoch - 1
    assert cli(*fit_args(root, student.args, epochs=3)).status == 0
    assert_same_run(metrics.parent, student.path)


def test_a_failed_save_keeps_the_previous_checkpoint(student: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second save fails half-way: the first checkpoint remains, and no partial file."""
    save, calls = pl.Trainer.save_checkpoint, []

    def fail(self: pl.Trainer, path: Path, **kwargs: object) -> None:
        calls.append(path)
        save(self, path, **kwargs)  # type: ignore[arg-type]
        if len(calls) == 2:
            Path(path).write_bytes(Path(path).read_bytes()[:1000])
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(pl.Trainer, "save_checkpoint", fail)
    outcome = cli(*fit_args(Path("out"), student.args, epochs=3))
    checkpoints = folder_in(Path("out")).resolve() / "checkpoints"
    assert outcome.status == 2
    assert "last.ckpt: No space left on device" in outcome.err
    assert [p.name for p in checkpoints.iterdir()] == ["last.ckpt"]
    assert load(checkpoints / "last.ckpt")["epoch"] == 0


def damaged(content: bytes, how: str) -> bytes:
    if how == "flip":
        middle = len(content) // 2
        return content[:middle] + bytes([content[middle] ^ 64]) + content[middle + 1 :]
    return content[: {"empty": 0, "1 %": len(content) // 100, "50 %": len(content) // 2, "-1": len(content) - 1}[how]]


@pytest.mark.parametrize("how", ["empty", "1 %", "50 %", "-1", "flip"])
def test_a_damaged_checkpoint_is_reported_and_kept(student: Run, how: str) -> None:
    path = folder_in(Path("out").resolve())
    (path / "checkpoints").mkdir(parents=True)
    for name in ("config.yaml", "metrics.csv"):
        (path / name).write_bytes((student.path / name).read_bytes())
    last = path / "checkpoints" / "last.ckpt"
    last.write_bytes(damaged(student.last.read_bytes(), how))
    before = snapshot(path)
    outcome = cli(*fit_args(Path("out"), student.args, epochs=3))
    assert outcome.status == 2
    assert outcome.err.startswith(f"error: checkpoint {last.relative_to(Path.cwd())} cannot be continued")
    assert len(outcome.err.splitlines()) == 1
    assert snapshot(path) == before


def test_a_folder_without_its_configuration_is_compared_with_its_checkpoint(student: Run) -> None:
    path = folder_in(Path("out").resolve())
    (path / "checkpoints").mkdir(parents=True)
    (path / "checkpoints" / "last.ckpt").write_bytes(student.last.read_bytes())
    assert "already finished" in cli(*fit_args(Path("out"), student.args, epochs=3)).out
    outcome = cli(*fit_args(Path("out"), [*student.args, "--model.lr=0.1"], epochs=3))
    assert outcome.status == 2 and "model.lr: 0.05 -> 0.1" in outcome.err


def test_fast_dev_run_writes_no_files(student: Run) -> None:
    before = snapshot(student.path)
    for root in (student.root, Path("out")):
        outcome = cli(*fit_args(root, [*student.args, "--trainer.fast_dev_run=1"], epochs=3))
        assert outcome.status == 0, outcome.err
    assert snapshot(student.path) == before
    assert not folder_in(Path("out")).exists()


def test_a_validation_split_selects_a_best_checkpoint(teacher: Run) -> None:
    args = student_args(teacher, "kd", "--data.init_args.val_size=20", "--trainer.limit_train_batches=1")
    outcome = cli(*fit_args(Path("out"), args, epochs=2))
    assert outcome.status == 0, outcome.err
    path = Path("out/digits/resnet20_resnet8/kd/seed_0")
    rows = rows_of(path)
    assert {"val/acc1", "val/acc1_best"} <= rows[0].keys()
    assert "test/acc1" not in rows[0]
    values = [float(row["val/acc1"]) for row in rows]
    best = load(path / "checkpoints" / "best.ckpt")["epoch"]
    assert values[best] == max(values)


def test_the_test_images_select_no_checkpoint(student: Run) -> None:
    assert sorted(p.name for p in (student.path / "checkpoints").iterdir()) == ["last.ckpt", "previous.ckpt"]


def test_the_rows_of_the_table(student: Run) -> None:
    rows = RunFolder(student.path).rows()
    assert [row["epoch"] for row in rows] == [1, 2, 3]
    assert rows[-1]["test/acc1"] == float(student.rows[-1]["test/acc1"])
    folder = RunFolder(Path("run"))
    folder.path.mkdir()
    folder.metrics.write_text("epoch,val/acc1,test/acc1\n1,,50\n2,40,\n")
    assert folder.rows() == [{"epoch": 1, "test/acc1": 50}, {"epoch": 2, "val/acc1": 40}]


@pytest.mark.parametrize(
    "text", ["epoch,seconds\n1,1e999\n", "epoch\nnan\n", "a\n1\n", "epoch,a\n1,x\n", "epoch\n" + "9" * 200_000]
)
def test_a_damaged_table_is_named(text: str) -> None:
    folder = RunFolder(Path("run"))
    folder.path.mkdir()
    folder.metrics.write_text(text)
    with pytest.raises(UserError, match=r"^run/metrics.csv is damaged .*: move run away to run it again$"):
        folder.rows()


def test_a_metric_of_any_name_is_no_formula_in_its_table() -> None:
    folder = RunFolder(Path("run"))
    record = EpochRecord(folder)
    record.rows = [{"epoch": 1, "=cmd()": -1.5}]
    record.write_rows(SimpleNamespace(is_global_zero=True))  # type: ignore[arg-type]
    assert folder.metrics.read_text() == "epoch,'=cmd()\n1,-1.5\n"
    assert folder.rows() == record.rows
