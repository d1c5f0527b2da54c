"""The command line from training a teacher to predictions; errors are in test_cli_errors.py."""

from __future__ import annotations

import csv
import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from ickd_pl import DistillationModule, commands, load_student, load_teacher
from ickd_pl.runs.configs import find_configs
from ickd_pl.runs.fit import IckdCLI
from tests.runs.helpers import (
    QUIET,
    TINY,
    Run,
    assert_equal,
    assert_same_run,
    cli,
    fit_args,
    load,
    rows_of,
    snapshot,
    student_args,
    subprocess_cli,
)


class Untrained(IckdCLI):
    """Builds everything that ``fit`` builds, but does not train."""

    def fit(self, *args: Any, **kwargs: Any) -> None:
        return


def accuracy(outcome_text: str, name: str) -> float:
    """A metric's value in the table that Lightning prints, with or without rich."""
    found = re.search(rf"{name}\W+([\d.]+)", outcome_text)
    assert found, outcome_text
    return float(found[1])


# -- the run folder ------------------------------------------------------------


def test_a_run_leaves_its_files_and_no_others(student: Run) -> None:
    files = sorted(p.relative_to(student.path).as_posix() for p in student.root.rglob("*") if p.is_file())
    assert files.pop(0) == ".lock"
    assert files == ["checkpoints/last.ckpt", "checkpoints/previous.ckpt", "config.yaml", "finished", "metrics.csv"]


def test_metrics_have_a_row_for_every_epoch(student: Run) -> None:
    assert [row["epoch"] for row in student.rows] == ["1", "2", "3"]
    names = {"loss/total", "loss/ce", "loss/ickd", "loss/kd", "train/acc1", "test/acc1", "test/acc5", "lr"}
    for row in student.rows:
        assert names <= row.keys()
        assert all(math.isfinite(float(value)) for value in row.values())
    assert [float(row["lr"]) for row in student.rows] == pytest.approx([0.05, 0.05, 0.005])
    last = student.rows[-1]
    total = float(last["loss/ce"]) + 2.5 * float(last["loss/ickd"]) + float(last["loss/kd"])
    assert float(last["loss/total"]) == pytest.approx(total, rel=1e-4)


def test_the_best_accuracy_is_logged_beside_the_last(student: Run) -> None:
    accuracies = [float(row["test/acc1"]) for row in student.rows]
    assert float(student.rows[-1]["test/acc1_best"]) == max(accuracies)


def test_the_configuration_is_complete_and_reproduces_the_run(student: Run) -> None:
    config = yaml.safe_load((student.path / "config.yaml").read_text())
    assert config["seed_everything"] == 0
    assert config["data"]["init_args"]["train_size"] == 100
    assert [s["class_path"].rpartition(".")[2] for s in config["model"]["strategies"]] == ["ICKD", "KD"]
    outcome = cli("fit", "--config", student.path / "config.yaml", "--trainer.default_root_dir=elsewhere")
    assert outcome.status == 0, outcome.err
    assert_same_run(Path("elsewhere/digits/resnet20_resnet8/ickd_kd/seed_0"), student.path)


def test_the_checkpoint_loads_safely_and_without_arguments(student: Run) -> None:
    content = load(student.last)
    assert not [key for key in content["state_dict"] if key.startswith("teacher.")]
    module = DistillationModule.load_from_checkpoint(student.last)
    for key, value in content["state_dict"].items():
        assert torch.equal(module.state_dict()[key], value), key
    net = load_student(student.last)
    assert not net.training
    image = torch.rand(2, 3, 32, 32)
    assert torch.equal(net(image), module.eval()(image))


def test_the_teacher_is_unchanged_by_a_run(teacher: Run) -> None:
    args = student_args(teacher, "ickd", "--trainer.limit_train_batches=2")
    done = IckdCLI(find_configs(fit_args(Path("out"), args)))
    module = done.model
    assert module.student.training
    assert not any(part.training for part in module.teacher.modules())
    assert_equal(dict(module.teacher.state_dict()), dict(load_teacher("resnet20", teacher.last, 10).state_dict()))
    assert all(parameter.grad is None for parameter in module.teacher.parameters())


def test_all_methods_of_a_seed_start_from_the_same_student(teacher: Run) -> None:
    starts = {}
    for method in ("vanilla", "kd", "ickd"):
        args = find_configs(fit_args(Path("out"), student_args(teacher, method)))
        starts[method] = dict(Untrained(args).model.student.state_dict())
    args = find_configs(fit_args(Path("out"), [*student_args(teacher, "kd"), "--seed_everything=1"]))
    other = Untrained(args).model.student.state_dict()
    assert_equal(starts["vanilla"], starts["kd"])
    assert_equal(starts["vanilla"], starts["ickd"])
    assert not torch.equal(starts["vanilla"]["conv1.weight"], other["conv1.weight"])


def test_vanilla_needs_no_teacher_weights() -> None:
    args = ["--config=configs/pairs/resnet20_resnet8.yaml", "--config=configs/methods/vanilla.yaml"]
    outcome = cli(*fit_args(Path("out"), [*args, "--trainer.limit_train_batches=1"]))
    assert outcome.status == 0, outcome.err
    assert Path("out/digits/resnet20_resnet8/vanilla/seed_0/checkpoints/last.ckpt").is_file()


def test_a_later_file_replaces_an_earlier_method(teacher: Run) -> None:
    stacked = ["--config=configs/methods/ickd_kl.yaml", "--config=configs/methods/kd.yaml"]
    args = [*student_args(teacher, "ickd_kl"), *stacked]
    model = Untrained(find_configs(fit_args(Path("out"), args))).model
    assert [(type(s).__name__, s.weight) for s in model.strategies] == [("KD", 0.9)]
    assert model.ce_weight == 0.1


def test_bf16_trains(teacher: Run) -> None:
    args = [*student_args(teacher), "--trainer.precision=bf16-mixed", "--trainer.limit_train_batches=2"]
    outcome = cli(*fit_args(Path("out"), args))
    assert outcome.status == 0, outcome.err
    row = rows_of(Path("out/digits/resnet20_resnet8/ickd_kd/seed_0"))[0]
    assert math.isfinite(float(row["loss/total"]))


# -- test, validate and predict by the checkpoint alone ------------------------


def test_test_repeats_the_last_epochs_accuracy(student: Run) -> None:
    before = snapshot(student.root)
    outcome = cli("test", "--ckpt_path", student.last, *QUIET)
    assert outcome.status == 0, outcome.err
    assert accuracy(outcome.out, "test/acc1") == pytest.approx(float(student.rows[-1]["test/acc1"]), abs=1e-4)
    again = cli("test", f"--ckpt_path={student.last}", *QUIET)
    assert accuracy(again.out, "test/acc1") == accuracy(outcome.out, "test/acc1")
    assert snapshot(student.root) == before


def test_test_needs_no_teacher_weights(teacher: Run) -> None:
    copy = Path("teacher.ckpt")
    copy.write_bytes(teacher.last.read_bytes())
    args = [*student_args(teacher), "--trainer.limit_train_batches=1", f"--model.teacher_weights={copy}"]
    assert cli(*fit_args(Path("out"), args)).status == 0
    copy.unlink()
    (last,) = Path("out").rglob("last.ckpt")
    assert cli("test", f"--ckpt_path={last}", *QUIET).status == 0


def test_validate_uses_the_test_images_without_a_split(student: Run) -> None:
    outcome = cli("validate", f"--ckpt_path={student.last}", *QUIET)
    assert outcome.status == 0, outcome.err
    assert accuracy(outcome.out, "test/acc1") == pytest.approx(float(student.rows[-1]["test/acc1"]), abs=1e-4)


def test_the_command_line_overrides_the_checkpoint(student: Run) -> None:
    outcome = cli("validate", f"--ckpt_path={student.last}", "--data.init_args.val_size=50", *QUIET)
    assert outcome.status == 0, outcome.err
    assert "val/acc1" in outcome.out
    file = Path("more.yaml")
    file.write_text("data:\n  init_args:\n    val_size: 50\n")
    outcome = cli("validate", f"--ckpt_path={student.last}", "--config", file, *QUIET)
    assert outcome.status == 0, outcome.err
    assert "val/acc1" in outcome.out


def test_predict_writes_a_row_for_every_image(student: Run) -> None:
    copy = Path("run/checkpoints/last.ckpt")
    copy.parent.mkdir(parents=True)
    copy.write_bytes(student.last.read_bytes())
    outcome = cli("predict", "--ckpt_path", copy, *QUIET)
    assert outcome.status == 0, outcome.err
    with Path("run/predictions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["index", "class", "probability"]
    assert [row["index"] for row in rows] == [str(i) for i in range(360)]
    assert {row["class"] for row in rows} <= {str(i) for i in range(10)}
    assert all(0.1 <= float(row["probability"]) <= 1 for row in rows)
    from sklearn.datasets import load_digits

    truth = load_digits().target[-360:]
    hits = sum(int(row["class"]) == label for row, label in zip(rows, truth, strict=True))
    assert 100 * hits / 360 == pytest.approx(float(student.rows[-1]["test/acc1"]), abs=1e-3)


def test_predict_writes_paths_and_class_names_of_a_folder() -> None:
    from PIL import Image

    for split, count in (("train", 4), ("test", 2)):
        for label, colour in (("cat", 40), ("dog", 200)):
            folder = Path("pets") / split / label
            folder.mkdir(parents=True)
            for i in range(count):
                Image.new("RGB", (40, 36), (colour, 10 * i, 90)).save(folder / f"{i}.png")
    data = [
        "--data=ImageFolder",
        "--data.init_args.root=pets",
        "--data.init_args.batch_size=4",
        "--model.student=resnet8",
    ]
    shared = [*QUIET, "--trainer.enable_model_summary=false"]
    outcome = cli("fit", "--config=configs/base.yaml", *data, *shared, "--trainer.max_epochs=1")
    assert outcome.status == 0, outcome.err
    path = Path("outputs/pets/resnet8/vanilla/seed_0")
    assert cli("predict", f"--ckpt_path={path}/checkpoints/last.ckpt", *QUIET).status == 0
    with (path / "predictions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["path"] for row in rows] == [f"pets/test/{c}/{i}.png" for c in ("cat", "dog") for i in range(2)]
    assert {row["class"] for row in rows} <= {"cat", "dog"}


# -- separate processes --------------------------------------------------------


STOPPING = [
    "--trainer.callbacks+=EarlyStopping",
    "--trainer.callbacks.monitor=loss/total",
    "--trainer.callbacks.patience=0",
    "--trainer.callbacks.min_delta=1000",
]


def test_a_run_that_stopped_early_is_finished() -> None:
    root = Path("out").resolve()
    args = fit_args(root, ["--model.student=resnet8", *STOPPING], epochs=5)
    first = cli(*args)
    assert first.status == 0, first.err
    path = root / "digits/resnet8/vanilla/seed_0"
    before = rows_of(path)
    assert 0 < len(before) < 5
    again = cli(*args)
    assert again.status == 0 and "already finished" in again.out
    assert rows_of(path) == before


def test_an_epoch_without_evaluation_has_no_accuracy() -> None:
    root = Path("out").resolve()
    args = ["--model.student=resnet8", "--trainer.check_val_every_n_epoch=2"]
    outcome = cli(*fit_args(root, args, epochs=3))
    assert outcome.status == 0, outcome.err
    shown = [bool(row["test/acc1"]) for row in rows_of(root / "digits/resnet8/vanilla/seed_0")]
    assert shown == [False, True, False]
    assert "epoch 2, the last evaluated," in outcome.out


def test_another_data_set_does_not_inherit_arguments(student: Run) -> None:
    """The train_size of the checkpoint's Digits is not passed to an image folder."""
    refused = cli("test", "--ckpt_path", student.last, *QUIET, "--data=ImageFolder", "--data.init_args.root=none")
    assert refused.status == 2 and "none is not a folder" in refused.err


@pytest.mark.ddp
def test_two_processes_train(teacher: Run) -> None:
    # Evaluation batches of 7: shares of 4 and 3, and of 2 and 1 in the last one.
    two = ["--trainer.devices=2", "--trainer.strategy=ddp", "--data.init_args.eval_batch_size=7"]
    root = Path("out").resolve()
    floor = "--model.teacher_floor=0"
    outcome = subprocess_cli(*fit_args(root, [*student_args(teacher), *two, floor]), seconds=240)
    assert outcome.status == 0, outcome.err
    # The teacher is measured on both ranks' images, each counted once.
    assert f"teacher resnet20: {float(teacher.rows[-1]['test/acc1']):.2f} percent" in outcome.err + outcome.out
    path = root / "digits/resnet20_resnet8/ickd_kd/seed_0"
    assert [row["epoch"] for row in rows_of(path)] == ["1"]
    DistillationModule.load_from_checkpoint(path / "checkpoints" / "last.ckpt")
    assert outcome.out.count("test accuracy:") == 1
    # Two ranks count every test image once: one process gives the same accuracy.
    one = cli("test", "--ckpt_path", path / "checkpoints" / "last.ckpt", *QUIET, "--trainer.devices=1")
    assert one.status == 0, one.err
    assert accuracy(one.out, "test/acc1") == pytest.approx(float(rows_of(path)[-1]["test/acc1"]), rel=1e-5)


IMPORT = """
import json, os, signal, sys, time
before = {s: signal.getsignal(s) for s in signal.valid_signals()}
began = time.perf_counter()
import ickd_pl
seconds = time.perf_counter() - began
import torch
print(json.dumps({
    "seconds": seconds,
    "cuda": torch.cuda.is_initialized(),
    "signals": [int(s) for s in before if signal.getsignal(s) != before[s]],
    "distributed": torch.distributed.is_initialized(),
    "modules": [m for m in ("sklearn", "pandas", "matplotlib", "jsonargparse") if m in sys.modules],
}))
"""


def test_importing_the_package_changes_nothing() -> None:
    home, here = Path("home"), Path("here")
    home.mkdir()
    here.mkdir()
    package = str(Path(__file__).resolve().parents[1])
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(home.resolve()),
        "PYTHONPATH": package,
        "OMP_NUM_THREADS": "1",
        # torchmetrics imports matplotlib if installed, which caches a list of fonts.
        "MPLCONFIGDIR": str(Path("fonts").resolve()),
    }
    done = subprocess.run(
        [sys.executable, "-c", IMPORT],
        cwd=here,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    seen = json.loads(done.stdout)
    print(f"import ickd_pl: {seen['seconds']:.1f} s")
    assert seen["seconds"] < 30
    assert not seen["cuda"]
    assert not seen["distributed"]
    assert seen["signals"] == []
    assert not {"sklearn", "pandas"} & set(seen["modules"])
    assert list(home.rglob("*")) == []
    assert list(here.rglob("*")) == []


def test_help_is_printed() -> None:
    outcome = cli("--help")
    assert outcome.status == 0
    assert all(name in outcome.out for name in ("fit", "test", *commands.names()))
    outcome = cli("fit", "--help")
    assert outcome.status == 0
    assert "--model.ce_weight" in outcome.out


def test_the_configuration_is_printed_without_a_run() -> None:
    outcome = cli("fit", *TINY, "--model.student=resnet8", "--print_config")
    assert outcome.status == 0
    assert yaml.safe_load(outcome.out)["model"]["student"] == "resnet8"
    assert list(Path().iterdir()) == []
