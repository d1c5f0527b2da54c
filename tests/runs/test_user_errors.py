"""What a library says about the user's settings is one line; a fault in the user's own code keeps its traceback."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.exceptions import MisconfigurationException  # type: ignore[attr-defined]

from ickd_pl import DistillationModule, UserError, get_model
from ickd_pl.cli import script
from ickd_pl.runs.user_errors import user_error
from tests.runs.helpers import QUIET, Outcome, cli, fit_args

ROOT = Path("out")
STUDENT = "--model.student=resnet8"
OWN = "tests.runs.own_code"


def check_refused(outcome: Outcome, needle: str) -> None:
    assert outcome.status == 2, outcome
    lines = outcome.err.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: ") and needle in lines[0], outcome.err


@pytest.mark.parametrize(
    ("words", "needle"),
    [
        (["--trainer.limit_train_batches=0.001"], "of train_dataloader is less than one batch: give"),
        (["--trainer.limit_val_batches=0.0001"], "of val_dataloader is less than one batch: give"),
        (["--trainer.val_check_interval=1000"], "`val_check_interval` (1000) must be less than or equal"),
        (["--trainer.callbacks+=EarlyStopping", "--trainer.callbacks.monitor=no"], "Early stopping conditioned on"),
        (
            ["--trainer.callbacks+=ModelCheckpoint", "--trainer.callbacks.monitor=no"],
            "could not find the monitored key",
        ),
        (["--trainer.callbacks+=LearningRateMonitor"], "Cannot use `LearningRateMonitor` callback with `Trainer` that"),
        (["--trainer.precision=transformer-engine"], "pip install"),
        (["--trainer.strategy=deepspeed"], "pip install"),
        (["--trainer.strategy=fsdp"], "requires a GPU"),
        (["--trainer.accelerator=mps"], "can not run on your system"),
        (["--trainer.devices=words"], "should be an int > 0"),
        (["--trainer.profiler=none"], "`profiler`"),
    ],
)
def test_settings_that_lightning_refuses(words: list[str], needle: str) -> None:
    check_refused(cli(*fit_args(ROOT, [STUDENT, *words])), needle)


@pytest.mark.parametrize("name", ["TensorBoardLogger", "WandbLogger", "MLFlowLogger", "CometLogger"])
def test_a_logger_whose_package_is_missing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module = sys.modules[getattr(pl.loggers, name).__module__]
    for where in (module, sys.modules.get("lightning_fabric.loggers.tensorboard")):
        for flag in [each for each in vars(where) if each.endswith("_AVAILABLE")]:
            monkeypatch.setattr(where, flag, Missing(), raising=False)
    check_refused(cli(*fit_args(ROOT, [STUDENT, f"--trainer.logger={name}", *save_dir(name)])), f"{name}: ")


class Missing:
    """Lightning's answer to whether a package is there."""

    def __bool__(self) -> bool:
        return False

    def __str__(self) -> str:
        return "try pip install"


def save_dir(name: str) -> list[str]:
    return ["--trainer.logger.save_dir=logs"] if name == "TensorBoardLogger" else []


@pytest.mark.parametrize(
    ("kind", "needle"),
    [
        ("grey", "give grey images three channels"),
        ("uint8", "convert them, such as image.float() / 255"),
        ("late label", "the label 12, which is none of the classes"),
        ("pillow", "found <class 'PIL.Image.Image'>): give each image as a tensor (3, H, W)"),
        ("sizes", "got [3, 32, 32] at entry 0 and [3, 32, 33] at entry 1): give each image as a tensor"),
        ("two loaders", "val_dataloader: expected one loader, got several"),
    ],
)
def test_own_data(kind: str, needle: str) -> None:
    own = [STUDENT, f"--data={OWN}.OwnData", f"--data.kind={kind}"]
    quiet = [*QUIET, "--trainer.enable_model_summary=false", "--model.milestones=[2]"]
    check_refused(cli("fit", *own, *quiet, "--trainer.max_epochs=1", f"--trainer.default_root_dir={ROOT}"), needle)


def test_a_refused_run_can_be_started_again() -> None:
    own = [STUDENT, f"--data={OWN}.OwnData", *QUIET, f"--trainer.default_root_dir={ROOT}", "--trainer.max_epochs=1"]
    assert cli("fit", *own, "--data.kind=grey").status == 2
    assert cli("fit", *own, "--data.kind=good").status == 0
    last, data = next(ROOT.rglob("last.ckpt")), f"--data={OWN}.OwnData"
    check_refused(cli("test", "--ckpt_path", last, data, *QUIET), "`test_dataloader` must be implemented")
    check_refused(
        cli("validate", "--ckpt_path", last, data, "--data.kind=uint8", *QUIET), "floating-point type, got uint8"
    )
    check_refused(cli("predict", "--ckpt_path", last, data, *QUIET), "`predict_dataloader` must be implemented")


def test_data_without_a_loader() -> None:
    words = [STUDENT, f"--data={OWN}.NoTraining", *QUIET, f"--trainer.default_root_dir={ROOT}"]
    check_refused(cli("fit", *words, "--trainer.max_epochs=1"), "`train_dataloader` must be implemented")


def test_a_single_image_that_batch_norm_cannot_use() -> None:
    layers = {"stem": "0", "stages": "['0']", "final": "0", "pooled": "3"}
    student = [f"--model.student={{class_path: {OWN}.OwnNorm}}"]
    student += [f"--model.student_layers.{name}={value}" for name, value in layers.items()]
    words = [f"--data={OWN}.OwnData", "--data.count=9", *QUIET, f"--trainer.default_root_dir={ROOT}"]
    outcome = cli("fit", *student, *words, "--trainer.max_epochs=1")
    check_refused(outcome, "1 of 9 images in batches of 4, is a single image, and batch norm in student OwnNorm")
    assert cli("fit", *student, *words, "--trainer.max_epochs=1", "--data.batch_size=3").status == 0


def test_a_class_in_the_place_of_a_name() -> None:
    words = [
        f"--model.student={OWN}.OwnNorm",
        "--model.student_layers={stem: '0', stages: ['0'], final: '0', pooled: '3'}",
    ]
    check_refused(cli(*fit_args(ROOT, words)), "a class of your own is given as '{class_path: ")


def test_faults_of_own_code_keep_their_traceback() -> None:
    teacher = ["--model.teacher=resnet8", f"--model.teacher_weights={ROOT}/teacher.pth"]
    ROOT.mkdir(exist_ok=True)
    torch.save(get_model("resnet8", 10).state_dict(), ROOT / "teacher.pth")
    with pytest.raises(ValueError, match="a fault of the loss"):
        cli(*fit_args(ROOT, [STUDENT, *teacher, f"--model.strategies+={OWN}.WrongLoss"]))
    with pytest.raises(ValueError, match="the tensor must have a single element"):
        cli(*fit_args(ROOT, [STUDENT, f"--trainer.callbacks+={OWN}.WrongLog"]))


def test_which_exceptions_are_the_users() -> None:
    module = DistillationModule("resnet8", num_classes=10)
    trainer = pl.Trainer(logger=False, accelerator="cpu", enable_checkpointing=False)

    def of(call: object, *args: object) -> UserError | None:
        try:
            call(*args)  # type: ignore[operator]
        except Exception as error:
            return user_error(error)
        raise AssertionError

    def chained() -> None:
        try:
            raise UserError("the cause")
        except UserError as error:
            raise RuntimeError("around it") from error

    def raised_here() -> None:
        raise MisconfigurationException("of own code")

    assert str(of(chained)) == "the cause"
    assert of(raised_here) is None
    assert of({}.__getitem__, 1) is None
    assert str(of(trainer.fit, 1)).startswith("trainer: `model` must be a `LightningModule`")
    assert of(trainer.fit, module, 3, 4, 5, 6, 7, 8) is None, "a call that Python refuses is a fault of code"


@pytest.fixture
def old_handler() -> Iterator[None]:
    """Puts back the handler of Ctrl-C, which a script keeps to its end."""
    old = signal.getsignal(signal.SIGINT)
    yield
    signal.signal(signal.SIGINT, old)


@pytest.mark.usefixtures("old_handler")
def test_the_script_finds_modules_of_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine.py").write_text(f"from {OWN} import OwnData\n\n\nclass Mine(OwnData):\n    pass\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    monkeypatch.setattr(sys, "argv", ["ickd", "fit", "--data=mine.Mine", "--print_config"])
    for _ in range(2):
        with pytest.raises(SystemExit) as stop:
            script()
        assert stop.value.code == 0 and "class_path: mine.Mine" in capsys.readouterr().out
    assert sys.path.index(str(tmp_path)) == len(sys.path) - 1, "after the installed packages"
    assert sys.path.count(str(tmp_path)) == 1


@pytest.mark.usefixtures("old_handler")
def test_python_can_be_told_to_leave_the_current_folder_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Flags:
        safe_path = True

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "flags", Flags())
    monkeypatch.setattr(sys, "argv", ["ickd"])
    with pytest.raises(SystemExit):
        script()
    assert str(tmp_path) not in sys.path
