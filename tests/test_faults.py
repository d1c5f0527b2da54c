"""Faults of files: cut, flipped, hostile, of another network, and runs that are killed or cannot write.

The parts that need no run are tested with what they belong to:

- saving: tests/test_files.py (the order of names); an error half-way through a save in
  tests/runs/test_run_folder.py::test_a_killed_run_leaves_the_checkpoint_before_it_whole.
- damaged checkpoints given to ``test``: tests/test_cli_errors.py::test_a_truncated_checkpoint and
  ::test_a_checkpoint_with_a_flipped_bit; damaged files of teachers: tests/weights/test_read.py.
- numbers of classes: tests/test_cli_errors.py::test_a_teacher_of_another_number_of_classes; labels in
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
    fit_words,
    load,
    snapshot,
    student_words,
    subprocess_cli,
)

ROOT = Path("out")
# One step an epoch and no evaluation.
ALONE = ["--model.student=resnet8", "--trainer.limit_train_batches=0.25", "--trainer.limit_val_batches=0"]
ALONE_FOLDER = Path("digits/resnet8/vanilla/seed_0")
DAMAGE = ["empty", "one byte", "50 %", "-1", "flip"]


def last_line(outcome: Outcome) -> Outcome:
    """Without what was said before the error."""
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
    """A folder for TMPDIR, on another file system than the run where there is one."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as folder:
        yield Path(folder)


def killed_while_saving(elsewhere: Path, delays: list[float]) -> None:
    folder = ROOT.resolve() / ALONE_FOLDER
    words = fit_words(ROOT.resolve(), [*ALONE, "--trainer.callbacks+=tests.runs.faults.Pad"], epochs=10_000)
    command = [sys.executable, "-m", "tests.runs.kill_while_saving", str(folder), str(elsewhere)]
    command += [",".join(map(str, delays)), *words]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    kills = json.loads(done.stdout.splitlines()[-1])
    epochs = [kill["epoch"] for kill in kills]
    assert len(kills) == len(delays)
    assert epochs == sorted(epochs)
    assert any(kill["inside"] for kill in kills), "no kill fell into a save: the delays are too long"
    assert list(elsewhere.rglob("*.ckpt*")) == []
    assert [path for path in elsewhere.iterdir() if path.is_file()] == [], "what was written went by way of TMPDIR"


def test_killed_while_saving(elsewhere: Path) -> None:
    """The checkpoint before it still loads, the next run goes on from it, nothing is partial."""
    killed_while_saving(elsewhere, [0, 2, 5, 10, 20, 40, 80, 160])


@pytest.mark.slow
def test_killed_while_saving_at_twenty_moments(elsewhere: Path) -> None:
    """The same, at more moments."""
    killed_while_saving(elsewhere, [5.0 * i for i in range(20)])


def test_a_full_disk() -> None:
    """Status 2, path and bytes in one line, the old checkpoint as it was, no temporary file."""
    full = ["--trainer.callbacks+=tests.runs.faults.LimitFiles", "--trainer.callbacks.init_args.epoch=1"]
    full += ["--trainer.callbacks.init_args.size=100000"]
    outcome = subprocess_cli(*fit_words(ROOT, [*ALONE, *full], epochs=3))
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
    assert cli(*fit_words(ROOT, ALONE, epochs=3)).status == 0
    assert load(last)["epoch"] == 2


# -- damaged checkpoints ---------------------------------------------------------


@pytest.fixture
def finished(student: Run) -> Run:
    """A copy of the run of three epochs, to be damaged."""
    path = ROOT.resolve() / student.path.relative_to(student.root)
    shutil.copytree(student.path, path)
    return Run(path, ROOT.resolve(), student.words)


def previous_of(run: Run) -> Path:
    return run.last.with_name("previous.ckpt")


@pytest.mark.parametrize("how", [*DAMAGE, "missing"])
def test_a_damaged_last_checkpoint(student: Run, finished: Run, how: str) -> None:
    """Warn with the file's name, go on from the one before, end as the run that was never broken."""
    if how == "missing":
        finished.last.unlink()
    else:
        faults.damage(finished.last, how)
    outcome = cli(*fit_words(finished.root, finished.words, epochs=3))
    assert outcome.status == 0, outcome.err
    warnings = [line for line in outcome.err.splitlines() if line.startswith("warning: ")]
    what = {"empty": "is empty", "missing": "is missing"}.get(how, "is damaged")
    assert len(warnings) == 1
    assert warnings[0].startswith(f"warning: {finished.last} {what}")
    assert warnings[0].endswith(f"; continuing from {previous_of(finished)} (epoch 2)")
    assert_same_run(finished.path, student.path)
    assert load(previous_of(finished))["epoch"] == 1, "the damaged file took the place of the good one"
    assert "already finished" in cli(*fit_words(finished.root, finished.words, epochs=3)).out


def test_a_run_that_goes_on_from_the_one_before_is_not_finished(finished: Run) -> None:
    """The mark of the end that was lost must not make the next call believe in it."""
    faults.damage(finished.last, "50 %")
    stop = ["--trainer.callbacks+=tests.runs.faults.StopBeforeEpoch", "--trainer.callbacks.init_args.epoch=2"]
    with pytest.raises(Stopped):
        cli(*fit_words(finished.root, [*finished.words, *stop], epochs=3))
    assert not (finished.path / "finished").exists()
    assert [row["epoch"] for row in finished.rows] == ["1", "2"]


def test_no_whole_checkpoint_is_left(finished: Run) -> None:
    """One line that names both files, and nothing changes."""
    faults.damage(finished.last, "flip")
    faults.damage(previous_of(finished), "50 %")
    before = snapshot(finished.root)
    outcome = cli(*fit_words(finished.root, finished.words, epochs=3))
    check_refused(outcome, f"{finished.last} is damaged", f"{previous_of(finished)} is damaged", "move ")
    assert snapshot(finished.root) == before


@pytest.mark.parametrize("how", DAMAGE)
@pytest.mark.parametrize("command", ["fit", "test"])
def test_a_damaged_checkpoint_given_by_its_path(finished: Run, command: str, how: str) -> None:
    """An error that names the file, whatever else lies beside it."""
    faults.damage(finished.last, how)
    before = snapshot(finished.root)
    words = fit_words(finished.root, finished.words, epochs=3) if command == "fit" else [command, *QUIET]
    outcome = cli(*words, f"--ckpt_path={finished.last}")
    check_refused(outcome, str(finished.last), "empty" if how == "empty" else "damaged")
    assert snapshot(finished.root) == before


# -- teachers --------------------------------------------------------------------


def test_a_teacher_of_another_network() -> None:
    """Refused by its names and keys before any data are looked for."""
    torch.save({"model": get_model("resnet20", 100).state_dict()}, "resnet20.pth")
    torch.save({"model": get_model("resnet8x4", 100).state_dict()}, "resnet8x4.pth")
    data = ["--config=configs/base.yaml", "--data=CIFAR100", "--data.root=nowhere", "--data.download=false", *QUIET]
    words = ["fit", *data, "--model.student=resnet8", "--model.teacher=resnet8x4", "--model.strategies+=KD"]
    refused = cli(*words, "--model.teacher_weights=resnet20.pth")
    check_refused(refused, "resnet20.pth", "does not fit resnet8x4", "missing keys", "unexpected keys", "other shapes")
    assert "it is the file of another network, resnet20; give" in refused.err
    assert "nowhere" not in refused.err
    # The right file comes as far as the data, which are not there.
    check_refused(cli(*words, "--model.teacher_weights=resnet8x4.pth"), "nowhere/cifar-100-python")
    assert sorted(path.name for path in Path().iterdir()) == ["resnet20.pth", "resnet8x4.pth"]


def test_a_teacher_of_another_network_is_not_half_loaded() -> None:
    """Resnet14's tensors fit resnet20 in name and shape, as far as there are any."""
    torch.save(get_model("resnet14", 10).state_dict(), "resnet14.pth")
    module = DistillationModule("resnet8", "resnet20", "resnet14.pth", strategies=[KD()], num_classes=10)
    assert isinstance(module.teacher, torch.nn.Module)
    before = {key: value.clone() for key, value in module.teacher.state_dict().items()}
    with pytest.raises(UserError, match=r"resnet14\.pth does not fit resnet20: .* missing keys"):
        module.prepare_teacher()
    assert_equal(dict(module.teacher.state_dict()), before)


# -- hostile files ---------------------------------------------------------------


class Payload:
    """Makes the folder ``ran`` where it is unpickled."""

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
def test_the_payload_works(make: Callable[[Path], None]) -> None:
    """Without protection it would run, so that the tests below can fail."""
    make(Path("bad.pth"))
    if make is in_plain_pickle:
        pickle.loads(Path("bad.pth").read_bytes())
    else:
        torch.load("bad.pth", weights_only=False)
    assert Path("ran").is_dir()


@hostile
@pytest.mark.parametrize("place", ["teacher", "fit", "test", "validate", "predict"])
def test_a_hostile_file(teacher: Run, make: Callable[[Path], None], place: str) -> None:
    """Refused, by its name, and nothing of it runs."""
    make(Path("bad.pth"))
    words = fit_words(ROOT, student_words(teacher, "kd")) if place in ("teacher", "fit") else [place, *QUIET]
    flag = "--model.teacher_weights" if place == "teacher" else "--ckpt_path"
    check_refused(cli(*words, f"{flag}=bad.pth"), "bad.pth", "refused: it wants to run code")
    assert [path.name for path in Path().iterdir()] == ["bad.pth"]


@hostile
@pytest.mark.parametrize("left", ["nothing", "the one before"])
def test_a_hostile_file_in_the_run_folder(finished: Run, make: Callable[[Path], None], left: str) -> None:
    """Nothing of it runs; a good checkpoint beside it is used, as for a damaged one."""
    make(finished.last)
    if left == "nothing":
        previous_of(finished).unlink()
    outcome = cli(*fit_words(finished.root, finished.words, epochs=3))
    assert not Path("ran").exists()
    if left == "nothing":
        check_refused(outcome, f"{finished.last} is refused")
    else:
        assert outcome.status == 0
        assert f"warning: {finished.last} is refused; continuing from {previous_of(finished)}" in outcome.err


def test_safetensors_are_taken_as_a_teacher(teacher: Run) -> None:
    """The format that cannot hold code trains the same student."""
    state = {key.removeprefix("student."): value for key, value in load(teacher.last)["state_dict"].items()}
    save_file(state, "teacher.safetensors")
    short = "--trainer.limit_train_batches=1"
    for root, more in (("a", []), ("b", ["--model.teacher_weights=teacher.safetensors"])):
        outcome = cli(*fit_words(Path(root), student_words(teacher, "kd", short, *more)))
        assert outcome.status == 0, outcome.err
    assert_same_run(*(Path(root, "digits/resnet20_resnet8/kd/seed_0") for root in "ab"))


# -- numbers of classes ----------------------------------------------------------


@pytest.mark.parametrize("split", ["train", "test"])
def test_labels_beyond_the_classes(split: str) -> None:
    """One line with split, label and number of classes, before the first step."""
    words = ["fit", "--config=configs/base.yaml", "--data=tests.runs.faults.WrongLabels", *ALONE, *QUIET]
    outcome = cli(*words, f"--data.init_args.wrong={split}", "--trainer.enable_model_summary=false")
    check_refused(outcome, f"labels of the {split} images of wrong", "(2 classes); the largest is 2")
    assert not list(Path().rglob("*.ckpt"))


def test_networks_of_other_numbers_of_classes() -> None:
    """The numbers of data, teacher and student, as far as there are any."""
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
    """An archive of a small CIFAR-100, on a server of this machine that torchvision now goes to."""
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


def cifar_ranks(*words: str) -> Outcome:
    """``python cli.py WORDS`` on two ranks, with the mirror."""
    command = [sys.executable, "-m", "tests.runs.cifar_ranks", "spec.json", "log", *CIFAR, *words]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    command += ["--trainer.devices=2", "--trainer.strategy=ddp"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, check=False)
    return Outcome(done.returncode, done.stdout, done.stderr)


@pytest.mark.ddp
def test_one_of_two_ranks_prepares(mirror: Path) -> None:
    """A corrupt archive is named and leaves nothing; the next run, of two ranks, fetches once and trains."""
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
    """No rank waits for one that could not prepare."""
    mirror.write_bytes(b"no archive")
    outcome = cifar_ranks()
    assert outcome.status == 2, outcome
    assert "corrupted" in outcome.err
    assert Path("log").read_text().split() == ["0"]
    assert not Path("cache").exists()
