"""Faulty files (truncated, flipped bits, malicious, of another network), and runs that are killed or cannot write.

Related tests are in other files:

- saving: tests/test_files.py (order of renames); an error half-way through a save in
  tests/runs/test_run_folder.py::test_a_failed_save_keeps_the_previous_checkpoint.
- damaged checkpoints given to ``test``: tests/test_cli_errors.py::test_a_truncated_checkpoint and
  ::test_a_checkpoint_with_a_flipped_bit; damaged files of teachers: tests/weights/test_read.py.
- numbers of classes: tests/test_cli_errors.py::test_a_teacher_with_another_number_of_classes; labels in
  tests/data/test_base.py::test_a_label_that_is_no_class_is_named.
- a corrupt archive of CIFAR: tests/data/test_cifar.py::test_a_corrupt_file_is_named_and_an_archive_repairs_it.
"""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from ickd_pl import DistillationModule
from ickd_pl.errors import UserError
from ickd_pl.models import get_model
from ickd_pl.strategies import KD
from tests.runs import faults
from tests.runs.faults import Stopped
from tests.runs.helpers import (
    QUIET,
    REPOSITORY,
    Outcome,
    Run,
    assert_equal,
    assert_same_run,
    cli,
    fit_args,
    load,
    snapshot,
    student_args,
    subprocess_cli,
)

ROOT = Path("out")
# One step an epoch and no evaluation.
ALONE = ["--model.student=resnet8", "--trainer.limit_train_batches=0.25", "--trainer.limit_val_batches=0"]
ALONE_FOLDER = Path("digits/resnet8/vanilla/seed_0")
DAMAGE = ["empty", "one byte", "50 %", "-1", "flip"]


def last_line(outcome: Outcome) -> Outcome:
    """The last line of stderr, without earlier warnings."""
    return Outcome(outcome.status, outcome.out, outcome.err.rstrip().rpartition("\n")[2])


def check_refused(outcome: Outcome, *needles: str) -> None:
    assert outcome.status == 2, outcome
    assert outcome.err.startswith("error: ")
    assert len(outcome.err.strip().splitlines()) == 1, outcome.err
    for needle in needles:
        assert needle in outcome.err, outcome.err


# -- saving ----------------------------------------------------------------------


@pytest.fixture
def elsewhere() -> Iterator[Path]:
    """A folder for TMPDIR, on a different file system from the run's if possible."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as folder:
        yield Path(folder)


def killed_while_saving(elsewhere: Path, delays: list[float]) -> None:
    folder = ROOT.resolve() / ALONE_FOLDER
    args = fit_args(ROOT.resolve(), [*ALONE, "--trainer.callbacks+=tests.runs.faults.Pad"], epochs=10_000)
    command = [sys.executable, "-m", "tests.runs.kill_while_saving", str(folder), str(elsewhere)]
    command += [",".join(map(str, delays)), *args]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    kills = json.loads(done.stdout.splitlines()[-1])
    epochs = [kill["epoch"] for kill in kills]
    assert len(kills) == len(delays)
    assert epochs == sorted(epochs)
    assert any(kill["inside"] for kill in kills), "no kill fell into a save: the delays are too long"
    assert list(elsewhere.rglob("*.ckpt*")) == []
    assert [path for path in elsewhere.iterdir() if path.is_file()] == [], "what was written went by way of TMPDIR"


@pytest.mark.reliability
def test_killed_while_saving(elsewhere: Path) -> None:
    """The previous checkpoint still loads, the next run resumes from it, and no file is partial."""
    killed_while_saving(elsewhere, [0, 2, 5, 10, 20, 40, 80, 160])


@pytest.mark.slow
def test_killed_while_saving_at_twenty_moments(elsewhere: Path) -> None:
    """The same at more moments."""
    killed_while_saving(elsewhere, [5.0 * i for i in range(20)])


def test_a_full_disk() -> None:
    """Status 2, one line with path and bytes, the old checkpoint unchanged, no temporary file."""
    full = ["--trainer.callbacks+=tests.runs.faults.LimitFiles", "--trainer.callbacks.init_args.epoch=1"]
    full += ["--trainer.callbacks.init_args.size=100000"]
    outcome = subprocess_cli(*fit_args(ROOT, [*ALONE, *full], epochs=3))
    last = ROOT / ALONE_FOLDER / "checkpoints" / "last.ckpt"
    (line,) = (line for line in outcome.err.splitlines() if line.startswith("error"))
    size = last.stat().st_size
    assert outcome.status == 2
    assert line.startswith(f"error: cannot write {last}: File too large for a checkpoint of ")
    wanted = int(line.partition("a checkpoint of ")[2].split()[0])
    assert abs(wanted - size) < 2000
    assert " bytes after 100000 bytes; free the space" in line
    assert "Traceback" not in outcome.err
    assert [path.name for path in last.parent.iterdir()] == ["last.ckpt"]
    assert load(last)["epoch"] == 0
    assert cli(*fit_args(ROOT, ALONE, epochs=3)).status == 0
    assert load(last)["epoch"] == 2


# -- damaged checkpoints ---------------------------------------------------------


@pytest.fixture
def finished(student: Run) -> Run:
    """A copy of a run of three epochs, for damaging."""
    path = ROOT.resolve() / student.path.relative_to(student.root)
    shutil.copytree(student.path, path)
    return Run(path, ROOT.resolve(), student.args)


def previous_of(run: Run) -> Path:
    return run.last.with_name("previous.ckpt")


@pytest.mark.parametrize("how", [*DAMAGE, "missing"])
def test_a_damaged_last_checkpoint(student: Run, finished: Run, how: str) -> None:
    """A warning names the file; the run resumes from the previous one and ends like an undamaged run."""
    if how == "missing":
        finished.last.unlink()
    else:
        faults.damage(finished.last, how)
    outcome = cli(*fit_args(finished.root, finished.args, epochs=3))
    assert outcome.status == 0, outcome.err
    warnings = [line for line in outcome.err.splitlines() if line.startswith("warning: ")]
    what = {"empty": "is empty", "missing": "is missing"}.get(how, "is damaged")
    assert len(warnings) == 1
    assert warnings[0].startswith(f"warning: {finished.last} {what}")
    assert warnings[0].endswith(f"; continuing from {previous_of(finished)} (epoch 2)")
    assert_same_run(finished.path, student.path)
    assert load(previous_of(finished))["epoch"] == 1, "the damaged file replaced the intact one"
    assert "already finished" in cli(*fit_args(finished.root, finished.args, epochs=3)).out


def test_a_run_that_resumes_from_the_previous_checkpoint_is_not_finished(finished: Run) -> None:
    """The file ``finished`` of the lost end must not mark the resumed run as finished."""
    faults.damage(finished.last, "50 %")
    stop = ["--trainer.callbacks+=tests.runs.faults.StopBeforeEpoch", "--trainer.callbacks.init_args.epoch=2"]
    with pytest.raises(Stopped):
        cli(*fit_args(finished.root, [*finished.args, *stop], epochs=3))
    assert not (finished.path / "finished").exists()
    assert [row["epoch"] for row in finished.rows] == ["1", "2"]


def test_no_intact_checkpoint_is_left(finished: Run) -> None:
    """One line names both files, and nothing changes."""
    faults.damage(finished.last, "flip")
    faults.damage(previous_of(finished), "50 %")
    before = snapshot(finished.root)
    outcome = cli(*fit_args(finished.root, finished.args, epochs=3))
    check_refused(outcome, f"{finished.last} is damaged", f"{previous_of(finished)} is damaged", "move ")
    assert snapshot(finished.root) == before


@pytest.mark.parametrize("how", DAMAGE)
@pytest.mark.parametrize("command", ["fit", "test"])
def test_a_damaged_checkpoint_passed_by_path(finished: Run, command: str, how: str) -> None:
    """An error names the file, whatever other files are beside it."""
    faults.damage(finished.last, how)
    before = snapshot(finished.root)
    args = fit_args(finished.root, finished.args, epochs=3) if command == "fit" else [command, *QUIET]
    outcome = cli(*args, f"--ckpt_path={finished.last}")
    check_refused(outcome, str(finished.last), "empty" if how == "empty" else "damaged")
    assert snapshot(finished.root) == before


# -- teachers --------------------------------------------------------------------


def test_a_teacher_of_another_network() -> None:
    """Refused because of its keys, before any data are read."""
    torch.save({"model": get_model("resnet20", 100).state_dict()}, "resnet20.pth")
    torch.save({"model": get_model("resnet8x4", 100).state_dict()}, "resnet8x4.pth")
    data = ["--config=configs/base.yaml", "--data=CIFAR100", "--data.root=nowhere", "--data.download=false", *QUIET]
    args = ["fit", *data, "--model.student=resnet8", "--model.teacher=resnet8x4", "--model.strategies+=KD"]
    refused = cli(*args, "--model.teacher_weights=resnet20.pth")
    check_refused(refused, "resnet20.pth", "does not fit resnet8x4", "missing keys", "unexpected keys", "other shapes")
    assert "it is the file of another network, resnet20; give" in refused.err
    assert "nowhere" not in refused.err
    # With the right file the error is about the missing data.
    check_refused(cli(*args, "--model.teacher_weights=resnet8x4.pth"), "nowhere/cifar-100-python")
    assert sorted(path.name for path in Path().iterdir()) == ["resnet20.pth", "resnet8x4.pth"]


def test_a_teacher_of_another_network_is_not_partly_loaded() -> None:
    """All tensors of resnet14 match tensors of resnet20 in name and shape."""
    torch.save(get_model("resnet14", 10).state_dict(), "resnet14.pth")
    module = DistillationModule("resnet8", "resnet20", "resnet14.pth", strategies=[KD()], num_classes=10)
    assert isinstance(module.teacher, torch.nn.Module)
    before = {key: value.clone() for key, value in module.teacher.state_dict().items()}
    with pytest.raises(UserError, match=r"resnet14\.pth does not fit resnet20: .* missing keys"):
        module.prepare_teacher()
    assert_equal(dict(module.teacher.state_dict()), before)


# -- malicious files -------------------------------------------------------------


class Payload:
    """Creates the folder ``ran`` when unpickled."""

    def __reduce__(self) -> tuple[Callable[..., None], tuple[str]]:
        return os.mkdir, ("ran",)


def in_zip(path: Path) -> None:
    torch.save({"state_dict": {}, "hyper_parameters": {}, "extra": Payload()}, path)


def in_old_format(path: Path) -> None:
    torch.save({"model": {"fc.weight": torch.zeros(2)}, "extra": Payload()}, path, _use_new_zipfile_serialization=False)


def in_plain_pickle(path: Path) -> None:
    path.write_bytes(pickle.dumps({"state_dict": Payload()}, protocol=2))


HOSTILE = [in_zip, in_old_format, in_plain_pickle]
hostile = pytest.mark.parametrize("make", HOSTILE, ids=lambda make: make.__name__)


@hostile
def test_the_payload_runs_without_protection(make: Callable[[Path], None]) -> None:
    """Without protection it runs, so the tests below can fail."""
    make(Path("bad.pth"))
    if make is in_plain_pickle:
        pickle.loads(Path("bad.pth").read_bytes())
    else:
        torch.load("bad.pth", weights_only=False)
    assert Path("ran").is_dir()


@hostile
@pytest.mark.parametrize("place", ["teacher", "fit", "test", "validate", "predict"])
def test_a_hostile_file(teacher: Run, make: Callable[[Path], None], place: str) -> None:
    """Refused by name; none of its code runs."""
    make(Path("bad.pth"))
    args = fit_args(ROOT, student_args(teacher, "kd")) if place in ("teacher", "fit") else [place, *QUIET]
    flag = "--model.teacher_weights" if place == "teacher" else "--ckpt_path"
    check_refused(cli(*args, f"{flag}=bad.pth"), "bad.pth", "refused: it wants to run code")
    assert [path.name for path in Path().iterdir()] == ["bad.pth"]


@hostile
@pytest.mark.parametrize("left", ["nothing", "the one before"])
def test_a_hostile_file_in_the_run_folder(finished: Run, make: Callable[[Path], None], left: str) -> None:
    """None of its code runs; an intact checkpoint beside it is used, as for a damaged one."""
    make(finished.last)
    if left == "nothing":
        previous_of(finished).unlink()
    outcome = cli(*fit_args(finished.root, finished.args, epochs=3))
    assert not Path("ran").exists()
    if left == "nothing":
        check_refused(outcome, f"{finished.last} is refused")
    else:
        assert outcome.status == 0
        assert f"warning: {finished.last} is refused; continuing from {previous_of(finished)}" in outcome.err


def test_safetensors_are_accepted_as_teacher_weights(teacher: Run) -> None:
    """Teacher weights in a format that cannot contain code train the same student."""
    state = {key.removeprefix("student."): value for key, value in load(teacher.last)["state_dict"].items()}
    save_file(state, "teacher.safetensors")
    short = "--trainer.limit_train_batches=1"
    for root, more in (("a", []), ("b", ["--model.teacher_weights=teacher.safetensors"])):
        outcome = cli(*fit_args(Path(root), student_args(teacher, "kd", short, *more)))
        assert outcome.status == 0, outcome.err
    assert_same_run(*(Path(root, "digits/resnet20_resnet8/kd/seed_0") for root in "ab"))


# -- numbers of classes ----------------------------------------------------------


@pytest.mark.parametrize("split", ["train", "test"])
def test_labels_beyond_the_classes(split: str) -> None:
    """One line has the split, the label and the number of classes, before the first step."""
    args = ["fit", "--config=configs/base.yaml", "--data=tests.runs.faults.WrongLabels", *ALONE, *QUIET]
    outcome = cli(*args, f"--data.init_args.wrong={split}", "--trainer.enable_model_summary=false")
    check_refused(outcome, f"labels of the {split} images of wrong", "(2 classes); the largest is 2")
    assert not list(Path().rglob("*.ckpt"))


def test_networks_with_different_numbers_of_classes() -> None:
    """The message has the numbers of classes of data, teacher and student."""
    nets: dict[str, Any] = {"student": get_model("resnet8", 7), "num_classes": 10}
    with pytest.raises(UserError, match="student resnet8 has 7 classes, the data 10: give"):
        DistillationModule(**nets)
    nets.update(teacher=get_model("resnet14", 100), strategies=[KD()])
    with pytest.raises(UserError, match="student resnet8 has 7 classes, the data 10, teacher resnet14 100: give"):
        DistillationModule(**nets)
    nets["student"] = "resnet8"
    with pytest.raises(UserError, match="teacher resnet14 has 100 classes, the data 10, student resnet8 10: give"):
        DistillationModule(**nets)


# -- preparing the data ----------------------------------------------------------


@pytest.fixture
def mirror(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An archive of a small CIFAR-100 on a local server that torchvision is directed to."""
    from torchvision import datasets

    from ickd_pl.data import CIFAR100
    from tests.data.cifar_source import make_source

    spec = datasets.CIFAR100
    source = make_source(Path("src/cifar-100-python"), spec, "fine_labels", 100, monkeypatch)
    path = Path("mirror/cifar-100-python.tar.gz").resolve()
    path.parent.mkdir()
    with tarfile.open(path, "w:gz") as archive:
        archive.add(source, source.name)
    monkeypatch.setattr(CIFAR100, "num_available", 200)
    monkeypatch.setattr(spec, "tgz_md5", hashlib.md5(path.read_bytes()).hexdigest())
    monkeypatch.setattr(SimpleHTTPRequestHandler, "log_message", lambda *_: None)
    handler = partial(SimpleHTTPRequestHandler, directory=str(path.parent))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        monkeypatch.setattr(spec, "url", f"http://127.0.0.1:{server.server_port}/{path.name}")
        names = ("url", "tgz_md5", "train_list", "test_list", "meta")
        Path("spec.json").write_text(json.dumps({name: getattr(spec, name) for name in names}))
        yield path
        server.shutdown()


CIFAR = ["fit", "--config=configs/base.yaml", "--data=CIFAR100", "--data.root=cache/cifar", *ALONE, *QUIET]
CIFAR += ["--trainer.max_epochs=1", "--trainer.enable_model_summary=false", "--trainer.default_root_dir=out"]


def cifar_ranks(*args: str) -> Outcome:
    """``python cli.py ARGS`` on two ranks, with the mirror."""
    command = [sys.executable, "-m", "tests.runs.cifar_ranks", "spec.json", "log", *CIFAR, *args]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    command += ["--trainer.devices=2", "--trainer.strategy=ddp"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, check=False)
    return Outcome(done.returncode, done.stdout, done.stderr)


@pytest.mark.ddp
def test_only_one_of_two_ranks_prepares_the_data(mirror: Path) -> None:
    """A corrupt archive is reported and removed; the next run, with two ranks, downloads once and trains."""
    whole = mirror.read_bytes()
    mirror.write_bytes(whole[:-100] + bytes([whole[-100] ^ 1]) + whole[-99:])
    check_refused(last_line(cli(*CIFAR)), f"/{mirror.name} ", "corrupted")
    assert not Path("cache").exists()
    mirror.write_bytes(whole)
    outcome = cifar_ranks()
    assert outcome.status == 0, outcome.err
    assert Path("log").read_text().split() == ["0"]
    files = sorted(path.relative_to("cache").as_posix() for path in Path("cache").rglob("*") if path.is_file())
    assert files == [f"cifar/cifar-100-python/{name}" for name in ("meta", "test", "train")]
    assert load(Path("out/cifar100/resnet8/vanilla/seed_0/checkpoints/last.ckpt"))["epoch"] == 0


@pytest.mark.slow
@pytest.mark.ddp
def test_two_ranks_fail_together(mirror: Path) -> None:
    """No rank waits for one that failed to prepare the data."""
    mirror.write_bytes(b"no archive")
    outcome = cifar_ranks()
    assert outcome.status == 2, outcome
    assert "corrupted" in outcome.err
    assert Path("log").read_text().split() == ["0"]
    assert not Path("cache").exists()
