"""What a folder's checkpoint holds is compared with what is asked: a run starts, continues, is finished or is refused.

Rows 17 to 21 of docs/reliability.md.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from filelock import FileLock

from ickd_pl.errors import UserError
from ickd_pl.runs import RunFolder
from ickd_pl.runs.decide import Asked
from ickd_pl.runs.lock import holder, locked
from ickd_pl.runs.pack_folder import decide_pack
from tests.runs.helpers import QUIET, Forked, Outcome, assert_same_run, cli, load, made_once, rows_of, snapshot
from tests.runs.moments import EPOCHS, STEPS, TWO, VANILLA, as_torchrun, ended, fit, folder, sending, whole_run
from tests.training.packs import make_teacher, member, packed

ONE = [*VANILLA, "--trainer.max_epochs=1"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one epoch."""

    def make(root: Path) -> None:
        assert cli(*fit(str(root / "out"), *ONE)).status == 0

    return made_once(tmp_path_factory, "decide", make) / "out"


@pytest.fixture
def out(trained: Path) -> str:
    """A copy of it in the current folder."""
    shutil.copytree(trained, "out")
    return "out"


def refused(outcome: Outcome, *needles: str) -> None:
    assert outcome.status == 2, outcome.err
    for needle in needles:
        assert needle in outcome.err, outcome.err
    assert "Traceback" not in outcome.err


# -- one run per folder ----------------------------------------------------------------------------------------------


def test_a_second_run_in_a_folder_is_refused(forked: Forked) -> None:
    """The message names host and process; after ``kill -9`` of the first run the folder is free at once."""
    Path("pids").mkdir()
    slow = ["--trainer.callbacks+=tests.runs.faults.Slow", "--trainer.callbacks.folder=pids"]
    slow += ["--trainer.callbacks.seconds=60"]
    first = forked.start(*fit("out", *ONE, *slow))
    deadline = time.monotonic() + 60
    while not Path("pids/0").exists():
        assert time.monotonic() < deadline, first.text()
        time.sleep(0.02)
    second = cli(*fit("out", *ONE))
    refused(second, f"is used by another run (process {first.pid} on {socket.gethostname()})", "default_root_dir")
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    assert holder(folder("out")) == ""
    third = cli(*fit("out", *ONE))
    assert third.status == 0, third.err
    assert len(rows_of(folder("out"))) == 1


def test_a_file_system_without_locks(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """As some network file systems, or systems without these locks: a warning, and the run goes on."""

    def none(*args: Any, **kwargs: Any) -> None:
        raise NotImplementedError

    monkeypatch.setattr(FileLock, "acquire", none)
    with locked(Path("folder"), None) as acquired:
        assert acquired
    assert "has no locks: do not start a second run in this folder" in capsys.readouterr().err


# -- what has changed ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("more", "difference"),
    [
        ("--data.init_args.batch_size=16", "data.init_args.batch_size: 32 -> 16"),
        ("--model.lr=0.1", "model.lr: 0.05 -> 0.1"),
        ("--trainer.precision=bf16-mixed", "trainer.precision: 32-true -> bf16-mixed"),
        ("--trainer.callbacks+=StochasticWeightAveraging", "StochasticWeightAveraging"),
        ("--trainer.gradient_clip_val=1", "trainer.gradient_clip_val: None -> 1"),
        ("--data.init_args.train_size=80", "data.init_args.train_size: 90 -> 80"),
    ],
)
def test_another_setting_is_refused_with_both_values(out: str, more: str, difference: str) -> None:
    before = snapshot(folder(out))
    extra = ["--trainer.callbacks.swa_lrs=0.01"] if "Averaging" in more else []
    refused(cli(*fit(out, *ONE, more, *extra)), difference, "Differences (stored -> new)")
    assert snapshot(folder(out)) == before


def test_what_only_reads_may_change(out: str) -> None:
    more = ["--trainer.callbacks+=ModelSummary", "--trainer.callbacks+=tests.runs.faults.Pad"]
    finished = cli(*fit(out, *ONE, *more))
    assert finished.status == 0 and "already finished" in finished.out, finished.err


def test_the_checkpoint_counts_and_not_the_configuration_file(out: str) -> None:
    """config.yaml edited or deleted changes nothing; the edited values are still refused."""
    config = folder(out) / "config.yaml"
    content = yaml.safe_load(config.read_text())
    content["model"]["lr"] = 9.0
    config.write_text(yaml.safe_dump(content))
    assert "already finished" in cli(*fit(out, *ONE)).out
    refused(cli(*fit(out, *ONE, "--model.lr=9")), "model.lr: 0.05 -> 9")
    config.unlink()
    assert "already finished" in cli(*fit(out, *ONE)).out
    refused(cli(*fit(out, *ONE, "--model.lr=9")), "model.lr: 0.05 -> 9")


def test_a_replaced_teacher_is_refused(trained: Path) -> None:
    """A file of other weights under the same name."""
    teacher = shutil.copy(folder(trained) / "checkpoints" / "last.ckpt", "teacher.ckpt")
    pair = ["--model.student=resnet8", "--model.teacher=resnet8", f"--model.teacher_weights={teacher}"]
    command = fit("out", *pair, "--model.strategies+=KD", "--trainer.max_epochs=1", "--trainer.limit_train_batches=1")
    assert cli(*command).status == 0
    content = load(Path(teacher))
    content["state_dict"]["student.conv1.weight"] += 1
    torch.save(content, teacher)
    refused(cli(*command), "teacher's weights: ")


def test_deleted_images_are_refused() -> None:
    from PIL import Image

    for split, count in (("train", 4), ("test", 2)):
        for name in ("cat", "dog"):
            path = Path("images", split, name)
            path.mkdir(parents=True)
            for i in range(count):
                Image.new("RGB", (32, 32), (40 * i, 9, 200)).save(path / f"{i}.png")
    data = ["--data=ImageFolder", "--data.init_args.root=images", "--data.init_args.batch_size=4"]
    shared = [word for word in fit("out", *ONE) if not word.startswith("--data")]
    assert (outcome := cli(*shared, *data)).status == 0, outcome.err
    assert "already finished" in cli(*shared, *data, "--data.init_args.cache=none").out, "it changes no result"
    Path("images/train/cat/2.png").unlink()
    refused(cli(*shared, *data), "images and labels: ")


def test_a_finished_run_tests_equally_twice(out: str) -> None:
    last = folder(out) / "checkpoints" / "last.ckpt"
    before = snapshot(folder(out))
    one, two = (cli("test", f"--ckpt_path={last}", *QUIET) for _ in range(2))
    assert one.status == two.status == 0 and one.out == two.out and "test/acc1" in one.out
    assert snapshot(folder(out)) == before


# -- a checkpoint that is given --------------------------------------------------------------------------------------


def test_a_given_checkpoint_continues_with_the_recipe_that_is_asked_for(out: str) -> None:
    """Epochs, rate, momentum, weight decay and milestones are used, also for what has been scheduled already."""
    last = folder(out) / "checkpoints" / "last.ckpt"
    asked = ["--trainer.max_epochs=3", "--model.lr=0.2", "--model.momentum=0.5", "--model.weight_decay=0.001"]
    outcome = cli(*fit("other", *VANILLA, *asked, "--model.milestones=[2]", f"--ckpt_path={last}"))
    assert outcome.status == 0, outcome.err
    for name in ("trainer.max_epochs", "model.lr", "model.momentum", "model.weight_decay", "model.milestones"):
        assert name in outcome.out
    rows = rows_of(folder("other"))
    assert [row["lr"] for row in rows] == ["0.05", "0.2", "0.02"]
    content = load(folder("other") / "checkpoints" / "last.ckpt")
    (group,) = content["optimizer_states"][0]["param_groups"]
    assert (group["momentum"], group["weight_decay"], group["initial_lr"]) == (0.5, 0.001, 0.2)
    settings = yaml.safe_load((folder("other") / "config.yaml").read_text())["model"]
    assert (settings["lr"], settings["milestones"]) == (0.2, [2])
    assert content["hyper_parameters"]["lr"] == 0.2


def test_the_same_command_with_a_given_checkpoint_goes_on(out: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not from the given one again, which would lose what was trained; nor over a run that began otherwise."""
    last = folder(out) / "checkpoints" / "last.ckpt"
    asked = [*VANILLA, "--trainer.max_epochs=4", "--model.lr=0.2", f"--ckpt_path={last}"]
    command = fit("other", *asked, *sending(f"on_train_batch_end:{STEPS}", "SIGTERM"))
    assert cli(*command).status == 143
    monkeypatch.setenv("NO_FAULTS", "1")
    again = cli(*command)
    assert again.status == 0 and f"continuing {folder('other').relative_to(Path.cwd())}" in again.out, again.err
    assert "already finished" in cli(*command).out
    assert cli(*fit("whole", *asked)).status == 0
    assert_same_run(folder("whole"), folder("other"))
    for name in ("whole", "other"):  # the file repeats the run, also of one that was stopped
        config = folder(name) / "config.yaml"
        assert f"ckpt_path: {last.resolve()}" in config.read_text()
    assert cli("fit", f"--config={config}", "--trainer.default_root_dir=repeated").status == 0
    assert_same_run(folder("whole"), folder("repeated"))
    before = snapshot(folder("whole"))
    other = shutil.copy(last, "copy.ckpt")
    refused(
        cli(*fit("whole", *asked[:-1], f"--ckpt_path={other}")), "did not begin with copy.ckpt", "leave --ckpt_path"
    )
    assert snapshot(folder("whole")) == before


@pytest.mark.parametrize(
    ("more", "difference"),
    [
        ("--data.init_args.batch_size=16", "data.init_args.batch_size: 32 -> 16"),
        ("--trainer.gradient_clip_val=1", "trainer.gradient_clip_val: None -> 1"),
        # They search before a run begins, and a run that continues keeps its values.
        (
            "--trainer.callbacks+=LearningRateFinder",
            "trainer.callbacks[0].class_path: None -> pytorch_lightning.callbacks.LearningRateFinder",
        ),
        (
            "--trainer.callbacks+=BatchSizeFinder",
            "trainer.callbacks[0].class_path: None -> pytorch_lightning.callbacks.BatchSizeFinder",
        ),
        ("--seed_everything=5", "seed_everything: 0 -> 5"),
    ],
)
def test_a_given_checkpoint_of_other_settings_is_refused(out: str, more: str, difference: str) -> None:
    last = folder(out) / "checkpoints" / "last.ckpt"
    outcome = cli(*fit("other", *VANILLA, "--trainer.max_epochs=3", more, f"--ckpt_path={last}"))
    refused(outcome, str(last), difference)
    assert not list(Path("other").rglob("*.ckpt"))


# -- another number of processes -------------------------------------------------------------------------------------


def test_two_ranks_do_not_continue_on_one_by_accident(forked: Forked) -> None:
    """Both numbers are named; with --override_world_size the global batch stays, and the run ends."""
    stop = sending("on_train_batch_end:1", "SIGTERM")
    assert [each.status for each in ended(as_torchrun(forked, *fit("out", *VANILLA, *TWO, *stop)))] == [143, 143]
    alone = fit("out", *VANILLA, *TWO[1:], "--trainer.devices=auto")
    refused(cli(*alone), "number of processes: 2 -> 1", "--override_world_size true")
    again = cli(*alone, "--override_world_size=true")
    assert again.status == 0, again.err
    assert load(folder("out") / "checkpoints" / "last.ckpt")["global_step"] == EPOCHS * STEPS


@pytest.mark.reliability
def test_a_batch_per_process_is_refused_under_the_override(forked: Forked) -> None:
    """torch's loader would halve the global batch."""
    words = [word for word in fit("out", *VANILLA, "--trainer.limit_val_batches=0") if not word.startswith("--data")]
    words += ["--data=tests.runs.nets.Own"]
    stop = sending("on_train_batch_end:1", "SIGTERM")
    two = ended(as_torchrun(forked, *words, "--trainer.devices=2", *stop))
    assert [each.status for each in two] == [143, 143], two[0].err
    refused(forked.run(*words), "number of processes: 2 -> 1")
    again = forked.run(*words, "--override_world_size=true")
    refused(again, "a global batch of 8 images, and would have 4 on 1 processes")


def test_every_test_image_counts_once_on_two_ranks(forked: Forked) -> None:
    """1,001 images: the accuracy of two ranks is exactly that of one process."""
    words = [word for word in fit("out", *ONE, "--trainer.limit_val_batches=1") if not word.startswith("--data")]
    assert (trained := forked.run(*words, "--data=tests.runs.nets.Odd")).status == 0, trained.err
    last = folder("out") / "checkpoints" / "last.ckpt"
    command = ["test", f"--ckpt_path={last}", "--data=tests.runs.nets.Odd", *QUIET]
    one, (two, other) = forked.run(*command), ended(as_torchrun(forked, *command, "--trainer.devices=2"))
    assert one.status == two.status == 0, other.err[-1500:]
    found = [re.findall(r"test/acc1\s+│?\s*([\d.]+)", each.out) for each in (one, two)]
    assert found[0] and found[0] == found[1]
    correct = float(found[0][0]) * 1001 / 100
    assert abs(correct - round(correct)) < 1e-3, "a whole number of 1,001 images"


# -- packs -----------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore")
def test_a_pack_decides_as_a_run_does() -> None:
    taught = make_teacher()
    packed(Path("pack"), {"kd": member(["kd"], taught), "vanilla": member([], taught)})
    names, path = ["kd", "vanilla"], Path("pack/pack.ckpt")
    same = [Asked({}, {}), Asked({}, {})]
    assert decide_pack(path, names, same)[0] == "finished"
    assert decide_pack(path, ["kd", "sp"], same) == ("start", None), "another pack"
    with pytest.raises(UserError, match=r"contains vanilla with another configuration.*\n  model\.lr: None -> 1"):
        decide_pack(path, names, [same[0], Asked({"model": {"lr": 1}}, {})])
    assert decide_pack(Path("none.ckpt"), names, same) == ("start", None)
    assert RunFolder(Path("pack/kd")).finished.is_file()


def test_a_given_checkpoint_with_as_many_epochs_is_refused(forked: Forked) -> None:
    whole = whole_run(forked, "whole", VANILLA)
    given = f"--ckpt_path={whole / 'checkpoints' / 'last.ckpt'}"
    outcome = forked.run(*fit("out", *VANILLA, given, "--trainer.max_epochs=1"))
    assert outcome.status == 2 and "has 2 epochs already, of 1: set more --trainer.max_epochs" in outcome.err
    assert not Path("out").exists()
