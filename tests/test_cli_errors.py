"""User errors: one line on stderr, status 2, no traceback, nothing trained, no file written."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.runs.helpers import QUIET, Outcome, Run, cli, fit_args, snapshot, student_args, subprocess_cli

ROOT = Path("out")
STUDENT = "--model.student=resnet8"


def check_refused(outcome: Outcome, *needles: str) -> None:
    assert outcome.status == 2, outcome
    assert outcome.err.startswith("error: ")
    assert len(outcome.err.strip().splitlines()) == 1, outcome.err
    assert "Traceback" not in outcome.err
    for needle in needles:
        assert needle in outcome.err, outcome.err
    assert not list(ROOT.rglob("*.ckpt"))
    assert not list(ROOT.rglob("metrics.csv"))


@pytest.mark.parametrize(
    ("args", "needles"),
    [
        (["--model.student=resnet9"], ["unknown network 'resnet9'", "resnet8"]),
        (["--model.student=Resnet8x5"], ["Resnet8x5", "resnet8x4"]),
        ([STUDENT, "--model.strategies+=IKD"], ["unknown class IKD", "ICKD"]),
        ([STUDENT, "--model.strategies+=nowhere.ICKD"], ["nowhere.ICKD"]),
        ([STUDENT, "--data=Digit"], ["unknown class Digit", "Digits"]),
        ([STUDENT, "--model.strategies+=KD"], ["KD needs a teacher"]),
        ([STUDENT, "--model.strategies+=KD", "--model.teacher=resnet20"], ["teacher resnet20 has no weights"]),
        ([STUDENT, "--model.strategies+=KD", "--model.teacher=resnet21"], ["resnet21", "resnet20"]),
        ([STUDENT, "--trainer.max_epoch", "1"], ["--trainer.max_epoch", "trainer.max_epochs"]),
        ([STUDENT, "--trainer.max_epoch=1"], ["--trainer.max_epoch", "trainer.max_epochs"]),
        ([STUDENT, "--modle.lr", "1"], ["--modle.lr", "model.lr"]),
        ([STUDENT, "--data.init_args.train_sise=1"], ["train_sise", "train_size"]),
        ([STUDENT, "stray"], ["stray"]),
        ([STUDENT, "--model.lr=fast"], ["model.lr: expected float, got fast"]),
        ([STUDENT, "--model.lr=-1"], ["lr: expected a number above 0, got -1.0"]),
        ([STUDENT, "--trainer.max_epochs=many"], ["trainer.max_epochs: expected ", "int", "many"]),
        ([STUDENT, "--data.init_args.batch_size=big"], ["batch_size", "big"]),
        ([STUDENT, "--data.init_args.batch_size=0"], ["batch_size must be at least 1"]),
        ([STUDENT, "--data.init_args.val_size=5000"], ["val_size must be between"]),
        ([STUDENT, "--seed_everything=true"], ["seed_everything: expected a whole number, got True"]),
        ([STUDENT, "--seed_everything=one"], ["seed_everything", "one"]),
        ([STUDENT, "--seed_everything=-1"], ["seed_everything: expected a number from 0"]),
        ([STUDENT, "--seed=1"], ["unknown option --seed", "seed_everything"]),
        ([STUDENT, "--model.momentum=-1"], ["momentum: expected 0 or more"]),
        (
            [STUDENT, "--trainer.accumulate_grad_batches=0"],
            ["trainer.accumulate_grad_batches: expected 1 or more, got 0"],
        ),
        ([STUDENT, "--trainer.gradient_clip_val=-1"], ["trainer.gradient_clip_val: expected 0 or more, got -1"]),
        ([STUDENT, "--ckpt_path=last"], ["checkpoint last does not exist: give the checkpoints/last.ckpt of a run"]),
        (
            ["--model.student={class_path: nowhere.Net}"],
            ["no class is found for {class_path: nowhere.Net}", "check the name after class_path"],
        ),
        ([STUDENT, "--trainer.check_val_every_n_epoch=0"], ["trainer.check_val_every_n_epoch: expected 1 or more"]),
        ([STUDENT, "--trainer.max_epochs=0"], ["trainer.max_epochs: expected 1 or more, got 0"]),
        ([STUDENT, "--trainer.limit_train_batches=0"], ["trainer.limit_train_batches: expected above 0"]),
        ([STUDENT, "--data.seed=5"], ["--data.seed comes from --seed_everything"]),
        (
            [STUDENT, "--model.strategies+=KD", "--model.strategies.temperature=0"],
            ["KD.temperature: expected a number above 0"],
        ),
        ([STUDENT, "--trainer.callbacks+=EarlyStoping"], ["EarlyStoping", "full import path"]),
        ([STUDENT, "--trainer.accelerator=abacus"], ["abacus"]),
        ([STUDENT, "--trainer.devices=0"], ["devices"]),
        ([STUDENT, "--trainer.precision=bf17"], ["trainer.precision", "bf17"]),
        ([STUDENT, "--config=configs/bass.yaml"], ["configs/bass.yaml does not exist", "configs/base.yaml"]),
        ([STUDENT, "--config=configs/method/ickd.yaml"], ["does not exist", "configs/methods/ickd.yaml"]),
        ([STUDENT, "--config=nowhere.yaml"], ["config file nowhere.yaml does not exist"]),
        ([STUDENT, "--config=."], ["config file . is a folder"]),
        ([STUDENT, "--config"], ["--config"]),
        ([], ["--model.student"]),
        ([STUDENT, "--ckpt_path=none.ckpt"], ["none.ckpt does not exist"]),
    ],
)
def test_arguments(args: list[str], needles: list[str]) -> None:
    check_refused(cli(*fit_args(ROOT, args)), *needles)


@pytest.mark.parametrize(
    ("text", "needles"),
    [
        ("modle:\n  lr: 0.1\n", ["modle", "model"]),
        ("model:\n  learning_rate: 0.1\n", ["model.learning_rate"]),
        ("model:\n  ce_wieght: 0.1\n", ["ce_wieght", "model.ce_weight"]),
        ("trainer:\n  max_epoch: 1\n", ["trainer.max_epoch", "trainer.max_epochs"]),
        ("data:\n  class_path: Digits\n  init_args:\n    train_sise: 50\n", ["train_sise", "train_size"]),
        ("data:\n  class_path: Digitz\n", ["Digitz", "Digits"]),
        ("model:\n  strategies:\n  - class_path: KDD\n", ["KDD", "KD"]),
        (
            "model:\n  strategies:\n  - class_path: KD\n    init_args: {temprature: 4}\n",
            ["temprature", "temperature"],
        ),
        ("model:\n  strategies:\n  - class_path: KD\n    init_args: {temperature: hot}\n", ["temperature", "hot"]),
        ("model:\n  lr: fast\n", ["model.lr", "fast"]),
        ("model: [\n", ["mistaken.yaml", "not valid YAML", "line"]),
        ("model:\n\tlr: 1\n", ["mistaken.yaml", "not valid YAML", "line 2"]),
        ("just a text", ["mistaken.yaml", "str"]),
        ("- a\n- list\n", ["mistaken.yaml", "list"]),
        ("", ["mistaken.yaml", "nothing"]),
        ("seed_everything: true\n", ["seed_everything: expected a whole number, got True"]),
    ],
)
def test_files(text: str, needles: list[str]) -> None:
    Path("mistaken.yaml").write_text(text)
    check_refused(cli(*fit_args(ROOT, [STUDENT, "--config=mistaken.yaml"])), *needles)


def test_a_file_that_is_not_text() -> None:
    Path("mistaken.yaml").write_bytes(b"\xff\xfe\x00\x01")
    check_refused(cli(*fit_args(ROOT, [STUDENT, "--config=mistaken.yaml"])), "mistaken.yaml")


@pytest.mark.parametrize(
    ("args", "needles"),
    [
        (["fitt"], ["fitt", "fit"]),
        (["--config", "configs/base.yaml"], ["fit"]),
        (["test"], ["test needs a trained student: set --ckpt_path FILE"]),
        (["validate", "--config", "configs/base.yaml", STUDENT], ["validate needs a trained student"]),
        (["test", "--ckpt_path"], ["--ckpt_path"]),
        (["predict", "--data=Digits", STUDENT], ["--ckpt_path"]),
    ],
)
def test_subcommands(args: list[str], needles: list[str]) -> None:
    check_refused(cli(*args), *needles)


# -- teachers ------------------------------------------------------------------


def with_teacher(teacher: Run, *args: str) -> Outcome:
    return cli(*fit_args(ROOT, student_args(teacher, "kd", *args)))


def test_missing_teacher_weights(teacher: Run) -> None:
    check_refused(
        with_teacher(teacher, "--model.teacher_weights=no.pth"), "resnet20", "no.pth", "--model.student resnet20"
    )


def test_teacher_weights_of_another_network(teacher: Run) -> None:
    refused = with_teacher(teacher, "--model.teacher=resnet32")
    check_refused(refused, str(teacher.last), "resnet32", "missing keys", "another network")


def test_a_teacher_with_another_number_of_classes(teacher: Run) -> None:
    weights = dict(torch.load(teacher.last, weights_only=True)["state_dict"])
    state = {key.removeprefix("student."): value for key, value in weights.items()}
    state["fc.weight"], state["fc.bias"] = torch.zeros(100, 64), torch.zeros(100)
    torch.save({"model": state}, "hundred.pth")
    check_refused(
        with_teacher(teacher, "--model.teacher_weights=hundred.pth"), "hundred.pth", "number of classes", "(100,)"
    )


def test_a_teacher_whose_training_failed(teacher: Run) -> None:
    state = torch.load(teacher.last, weights_only=True)["state_dict"]
    state["student.conv1.weight"][0, 0, 0, 0] = float("nan")
    torch.save({"state_dict": state}, "nan.ckpt")
    check_refused(with_teacher(teacher, "--model.teacher_weights=nan.ckpt"), "nan.ckpt", "NaN", "conv1.weight")


def test_a_setting_that_comes_from_the_data() -> None:
    Path("linked.yaml").write_text("model: {student: resnet8, num_classes: 7}")
    check_refused(cli(*fit_args(ROOT, ["--config=linked.yaml"])), "linked.yaml", "model.num_classes", "the data")


def test_damaged_teacher_weights(teacher: Run) -> None:
    Path("half.pth").write_bytes(teacher.last.read_bytes()[:5000])
    check_refused(with_teacher(teacher, "--model.teacher_weights=half.pth"), "half.pth", "damaged")


# -- data and folders ----------------------------------------------------------


def test_a_folder_without_images() -> None:
    data = ["--data=ImageFolder", "--data.init_args.root=pets", STUDENT]
    shared = ["fit", "--trainer.default_root_dir=out", "--trainer.max_epochs=1", *QUIET]
    check_refused(cli(*shared, *data), "pets")
    (Path("pets/train/cat")).mkdir(parents=True)
    check_refused(cli(*shared, *data), "pets/test")
    (Path("pets/test/cat")).mkdir(parents=True)
    check_refused(cli(*shared, *data), "pets/train/cat", "no images")


def test_an_output_folder_that_is_a_file() -> None:
    ROOT.write_text("a file")
    outcome = cli(*fit_args(ROOT, [STUDENT]))
    assert outcome.status == 2
    assert outcome.err.startswith("error: cannot write into out/")
    assert ROOT.read_text() == "a file"


def test_an_output_folder_that_cannot_be_written() -> None:
    ROOT.mkdir()
    ROOT.chmod(0o500)
    if os.access(ROOT, os.W_OK):
        pytest.skip("this user may write everywhere")
    check_refused(cli(*fit_args(ROOT, [STUDENT])), "cannot write out/")


# -- checkpoints ---------------------------------------------------------------


def foreign(path: Path) -> None:
    torch.save({"model": {"fc.weight": torch.zeros(3)}}, path)


def bare_lightning(path: Path) -> None:
    torch.save({"state_dict": {}, "pytorch-lightning_version": "2.6.0", "epoch": 1}, path)


@pytest.mark.parametrize("command", ["test", "validate", "predict", "fit"])
@pytest.mark.parametrize(
    ("make", "needle"),
    [
        (None, "does not exist"),
        (Path.mkdir, "is a folder"),
        (Path.touch, "is empty"),
        (lambda path: path.write_text("no checkpoint"), "damaged"),
        (foreign, "is not a checkpoint of ickd_pl"),
        (bare_lightning, "is not a checkpoint of ickd_pl"),
    ],
)
def test_a_checkpoint_path(command: str, make: Callable[[Path], object] | None, needle: str) -> None:
    path = Path("some.ckpt")
    if make is not None:
        make(path)
    args = fit_args(ROOT, [STUDENT]) if command == "fit" else [command, *QUIET]
    outcome = cli(*args, f"--ckpt_path={path}")
    check_refused(outcome, "some.ckpt", needle)


@pytest.mark.parametrize("share", [0.01, 0.5, 1.0])
def test_a_truncated_checkpoint(student: Run, share: float) -> None:
    content = student.last.read_bytes()
    Path("cut.ckpt").write_bytes(content[: min(int(len(content) * share), len(content) - 1)])
    check_refused(cli("test", "--ckpt_path=cut.ckpt", *QUIET), "cut.ckpt", "damaged")


def test_a_checkpoint_with_a_flipped_bit(student: Run) -> None:
    content = bytearray(student.last.read_bytes())
    content[len(content) // 2] ^= 64
    Path("flipped.ckpt").write_bytes(content)
    check_refused(cli("test", "--ckpt_path=flipped.ckpt", *QUIET), "flipped.ckpt", "damaged")


def test_a_checkpoint_of_another_network(student: Run) -> None:
    before = snapshot(student.root)
    outcome = cli("test", f"--ckpt_path={student.last}", "--model.student=resnet14", *QUIET)
    check_refused(outcome, "another network")
    assert snapshot(student.root) == before


def test_a_checkpoint_of_other_data(student: Run) -> None:
    from PIL import Image

    for split in ("train", "test"):
        for label in ("cat", "dog"):
            Path("pets", split, label).mkdir(parents=True)
            for i in range(2):
                Image.new("RGB", (32, 32), (i, 0, 0)).save(Path("pets", split, label, f"{i}.png"))
    data = ["--data=ImageFolder", "--data.init_args.root=pets"]
    outcome = cli("test", f"--ckpt_path={student.last}", *data, *QUIET)
    assert outcome.status == 2, outcome
    assert outcome.err.splitlines()[-1].startswith("error: ")


# -- a separate process --------------------------------------------------------


def test_the_whole_stderr_is_one_line() -> None:
    outcome = subprocess_cli(*fit_args(ROOT, ["--model.student=resnet9"]))
    check_refused(outcome, "unknown network 'resnet9'")
    assert outcome.out == ""


@pytest.mark.parametrize(
    ("args", "needle"),
    [
        (["--trainer.val_check_interval=1000"], "val_check_interval"),
        (
            ["--trainer.callbacks=EarlyStopping", "--trainer.callbacks.init_args.monitor=val/acc2"],
            "Early stopping conditioned on metric `val/acc2`",
        ),
    ],
)
def test_errors_that_lightning_detects_late_are_one_line(args: list[str], needle: str) -> None:
    outcome = cli(*fit_args(ROOT, [STUDENT, *args]))
    assert outcome.status == 2, outcome.err
    last = outcome.err.strip().splitlines()[-1]
    assert last.startswith("error: trainer: ") and needle in last
    assert "Traceback" not in outcome.err


def test_a_duplicate_key_in_a_file() -> None:
    Path("twice.yaml").write_text("model:\n  student: resnet8\n  lr: 0.1\n  lr: 0.2\n")
    check_refused(cli(*fit_args(ROOT, ["--config", "twice.yaml"])), "twice.yaml", "lr is given twice", "line 4")


def test_no_command_at_all() -> None:
    outcome = cli()
    assert outcome.status == 2
    assert outcome.err.endswith(
        "\nerror: expected a command (fit, validate, test, predict, bench, correlations, data, export, teachers); "
        "see --help\n"
    )
