"""``correlations`` on the command line: the distances, what is compared, and errors in one line."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image

from ickd_pl import Digits, get_model, load_student, load_teacher
from ickd_pl.correlations.measures import logit_correlation, mean_channel_correlation
from ickd_pl.seeding import seeded
from tests.runs.helpers import Run, cli, load, snapshot

ROWS = ("channels", "class logits", "ICKD's loss")


def numbers(out: str) -> dict[str, list[str]]:
    """The printed table: distances before and after."""
    lines = {row: next(line for line in out.splitlines() if line.startswith(row)) for row in ROWS}
    return {row: line.split()[-2:] for row, line in lines.items()}


def changed(student: Run, where: str, **arguments: Any) -> Path:
    """A copy of the checkpoint with other hyper-parameters; with other methods, without adapters."""
    content = load(student.last)
    content["hyper_parameters"].update(arguments)
    if "strategies" in arguments:
        content["state_dict"] = {k: v for k, v in content["state_dict"].items() if not k.startswith("adapters.")}
    torch.save(content, where)
    return Path(where)


KD = [{"class_path": "ickd_pl.strategies.kd.KD", "init_args": {}}]


def test_distillation_brings_the_student_closer(student: Run) -> None:
    before = snapshot(student.path)
    done = cli("correlations", "--ckpt_path", student.last, "--output", "out/c.png")
    assert (done.status, done.err) == (0, "")
    assert done.out.startswith("resnet20 teaches resnet8: 360 test images of digits\n")
    assert done.out.endswith("wrote out/c.png\n")
    assert [p.name for p in Path("out").iterdir()] == ["c.png"]
    assert snapshot(student.path) == before
    table = numbers(done.out)
    for row in ("channels", "ICKD's loss"):  # what ICKD trains
        start, end = map(float, table[row])
        assert end < 0.7 * start, (row, start, end)
    assert (
        cli("correlations", "--ckpt_path", student.last, "--output", "out/d.png").out.split("wrote")[0]
        == (done.out.split("wrote")[0])
    )
    assert Path("out/c.png").read_bytes() == Path("out/d.png").read_bytes()


def test_distances_equal_those_computed_from_the_networks(student: Run, teacher: Run) -> None:
    """Recomputed from the weights and the test images, without the command's code."""
    done = cli("correlations", "--ckpt_path", student.last, "--images", 90, "--output", "c.png")
    data = Digits(train_size=100)
    data.setup("test")
    images = torch.cat([batch.image for batch in data.test_dataloader()])[::4]
    assert len(images) == 90
    state = {k: v for k, v in load(student.last)["state_dict"].items() if k.startswith("adapters.ickd")}
    weight, norm = (
        state["adapters.ickd.conv.weight"],
        {k.rpartition(".")[2]: v for k, v in state.items() if ".bn." in k},
    )
    with torch.no_grad():
        teacher_features = load_teacher("resnet20", teacher.last, 10).features(images)
        student_features = load_student(student.last).features(images)
        adapted = torch.einsum("oc,bchw->bohw", weight[:, :, 0, 0], student_features.final)
        adapted = torch.nn.functional.batch_norm(
            adapted, norm["running_mean"], norm["running_var"], norm["weight"], norm["bias"]
        )
    channels = (mean_channel_correlation(adapted) - mean_channel_correlation(teacher_features.final)).abs().mean()
    logits = (logit_correlation(student_features.logits) - logit_correlation(teacher_features.logits)).abs().mean()
    table = numbers(done.out)
    assert float(table["channels"][1]) == pytest.approx(float(channels), abs=1e-4)
    assert float(table["class logits"][1]) == pytest.approx(float(logits), abs=1e-4)


def test_the_picture_is_written_to_the_run_folder(student: Run) -> None:
    last = Path("run/checkpoints/last.ckpt")
    last.parent.mkdir(parents=True)
    last.write_bytes(student.last.read_bytes())
    done = cli("correlations", "--ckpt_path", last, "--images", 20)
    assert (done.status, done.err) == (0, "")
    assert sorted(p.name for p in Path("run").iterdir()) == ["checkpoints", "correlations.png"]


def test_before_can_be_another_student(student: Run) -> None:
    """Its own adapter is used; a student without one uses the checkpoint's, which a note says."""
    args = ["correlations", "--ckpt_path", student.last, "--images", 60, "--output", "c.png"]
    itself = cli(*args, "--before", student.last)
    assert (itself.status, itself.err) == (0, "")
    assert all(before == after for before, after in numbers(itself.out).values())
    assert "note" not in itself.out

    vanilla = changed(student, "vanilla.ckpt", strategies=[], teacher=None, teacher_weights=None)
    plain = cli(*args, "--before", vanilla)
    assert (plain.status, plain.err) == (0, "")
    assert "note: Before: this student never trained with the adapter" in plain.out
    assert numbers(plain.out)["class logits"] == numbers(itself.out)["class logits"]
    # The distances after are unchanged, although the other adapter had the same initial weights.
    for row in ("channels", "ICKD's loss"):
        assert numbers(plain.out)[row][1] == numbers(itself.out)[row][1] != numbers(plain.out)[row][0]


def test_without_an_adapter_the_students_channels_are_compared(student: Run) -> None:
    last = changed(student, "kd.ckpt", strategies=KD)
    done = cli("correlations", "--ckpt_path", last, "--images", 60)
    assert (done.status, done.err) == (0, "")
    assert "note: No ICKD adapter: the student's own channels are compared" in done.out
    assert all(float(value) > 0 for row in numbers(done.out).values() for value in row)


@pytest.mark.parametrize("suffix", ["svg", "pdf"])
def test_networks_with_different_channels_have_no_channel_distance(student: Run, suffix: str) -> None:
    with seeded("test"):
        torch.save(get_model("resnet8x4", 10).state_dict(), "wide.pth")
    args = ["correlations", "--ckpt_path", changed(student, "kd.ckpt", strategies=KD), "--images", 20]
    done = cli(*args, "--teacher", "resnet8x4", "--teacher_weights", "wide.pth", "--output", f"c.{suffix}")
    assert (done.status, done.err) == (0, "")
    assert done.out.startswith("resnet8x4 teaches resnet8")
    assert "note: teacher 256 channels, student 64, and no ICKD adapter between them: no difference is def" in done.out
    table = numbers(done.out)
    assert table["channels"] == table["ICKD's loss"] == ["-", "-"]
    assert all(float(value) > 0 for value in table["class logits"])


def test_the_data_can_be_changed(student: Run) -> None:
    """Options change the checkpoint's data; another data set replaces them; images are normalised as in training."""
    content = load(student.last)
    content["Digits"]["mean"] = [0.9, 0.9, 0.9]
    torch.save(content, "other_mean.ckpt")
    del content["ickd_pl"]["data"]
    torch.save(content, "no_data.ckpt")
    args = ["--images", 30, "--output", "c.png"]
    usual = cli("correlations", "--ckpt_path", student.last, *args)
    smaller = cli("correlations", "--ckpt_path", student.last, "--data.eval_batch_size=7", *args)
    named = cli("correlations", "--ckpt_path", student.last, "--data", "Digits", *args)
    without = cli("correlations", "--ckpt_path", "no_data.ckpt", "--data=Digits", *args)
    normalised = cli("correlations", "--ckpt_path", "other_mean.ckpt", *args)
    for done in (usual, smaller, named, without, normalised):
        assert (done.status, done.err) == (0, "")
    assert numbers(smaller.out) == numbers(named.out) == numbers(usual.out)
    assert numbers(normalised.out)["channels"] != numbers(usual.out)["channels"]


def test_an_image_folder_whose_name_is_a_number(student: Run) -> None:
    """Images of every class are used although they are sorted by class; the folder can be moved."""
    for split in ("train", "test"):
        for k in range(10):
            folder = Path("2024", split, f"class_{k}")
            folder.mkdir(parents=True)
            for i in range(3):
                Image.new("RGB", (32, 32), (25 * k, 80 * i, 128)).save(folder / f"{i}.png")
    content = load(student.last)
    arguments = {"root": "2024", "image_size": 32, "val_size": 0, "train_size": None}
    content["ickd_pl"]["data"] = {"class_path": "ickd_pl.data.image_folder.ImageFolder", "init_args": arguments}
    Path("run/checkpoints").mkdir(parents=True)
    torch.save(content, "run/checkpoints/own.ckpt")
    args = ["correlations", "--ckpt_path", "run/checkpoints/own.ckpt", "--images", 10, "--output", "c.png"]
    alone = cli(*args)
    assert alone.status == 2
    assert "data.init_args.root is '2024'" in alone.err
    assert alone.err.endswith("set --data.init_args.root\n")
    own = {"data": {"class_path": "ickd_pl.data.ImageFolder", "init_args": {"root": "2024"}}}
    Path("run/config.yaml").write_text(yaml.safe_dump(own))
    done = cli(*args)
    assert (done.status, done.err) == (0, "")
    assert done.out.startswith("resnet20 teaches resnet8: 10 test images of 2024")
    assert "data of the checkpoint: ImageFolder, root '2024'" in done.out
    Path("2024").rename("2025")
    gone, moved = cli(*args), cli(*args, "--data.root", "2025")
    assert gone.status == 2
    assert "2024 is not a folder" in gone.err
    assert numbers(moved.out) == numbers(done.out)


def damaged_adapter(content: dict[str, Any]) -> dict[str, Any]:
    state = {k: v for k, v in content["state_dict"].items() if k != "adapters.ickd.bn.running_mean"}
    return {**content, "state_dict": state}


@pytest.mark.parametrize(
    ("args", "needle"),
    [
        ([], "required: --ckpt_path"),
        (["--ckpt_path", "good.ckpt", "--ouput", "x.png"], "unknown --ouput: did you mean --output"),
        (["--ckpt_path", "good.ckpt", "--dat.root", "x"], "unknown --dat.root"),
        (["--ckpt_path", "good.ckpt", "--data"], "--data: expected the name of a data set"),
        (["--ckpt_path", "good.ckpt", "--images", "1"], "--images: expected 2 or more, got 1"),
        (["--ckpt_path", "good.ckpt", "--images", "x"], "--images: invalid int value"),
        (["--ckpt_path", "good.ckpt", "--output", "x.gif"], "x.gif: a picture ends in .png, .svg, .pdf"),
        (["--ckpt_path", "good.ckpt", "--output", "folder.png"], "folder.png is a folder"),
        (["--ckpt_path", "good.ckpt", "--images", "9", "--output", "text/x.png"], "cannot write text/x.png"),
        (["--ckpt_path", "none.ckpt"], "none.ckpt does not exist"),
        (["--ckpt_path", "cut.ckpt"], "cut.ckpt is damaged"),
        (["--ckpt_path", "hostile.ckpt"], "hostile.ckpt is refused: it wants to run code"),
        (["--ckpt_path", "teacher.pth"], "teacher.pth is not a checkpoint of ickd_pl"),
        (["--ckpt_path", "strange.ckpt"], "strange.ckpt: its configuration is damaged"),
        (["--ckpt_path", "adapter.ckpt"], "adapter.ckpt: the adapter of its ICKD is missing or damaged"),
        (["--ckpt_path", "vanilla.ckpt"], "vanilla.ckpt names no teacher (methods: none): give --teacher NAME"),
        (["--ckpt_path", "gone.ckpt"], "learnt from the teacher resnet20 in gone.pth, which no longer exists"),
        (["--ckpt_path", "good.ckpt", "--teacher", "resnet56"], "where the weights of resnet56 are"),
        (["--ckpt_path", "good.ckpt", "--teacher_weights", "none.pth"], "none.pth does not exist"),
        (["--ckpt_path", "good.ckpt", "--teacher_weights", "good.ckpt"], "good.ckpt does not fit resnet20"),
        (["--ckpt_path", "good.ckpt", "--teacher", "resnet57", "--teacher_weights", "good.ckpt"], "resnet57"),
        (["--ckpt_path", "good.ckpt", "--before", "none.ckpt"], "none.ckpt does not exist"),
        (["--ckpt_path", "good.ckpt", "--before", "TEACHER"], "is a resnet20 of 10 classes, good.ckpt a resnet8 of"),
        (["--ckpt_path", "good.ckpt", "--data", "CIFAR100"], "the data have 100 classes, good.ckpt has 10"),
        (["--ckpt_path", "good.ckpt", "--data", "Digit"], "Digits"),
        (["--ckpt_path", "good.ckpt", "--data.rot", "x"], "rot"),
    ],
)  # fmt: skip
def test_errors_are_one_line_and_leave_no_files(student: Run, teacher: Run, args: list[str], needle: str) -> None:
    content = load(student.last)
    torch.save(content, "good.ckpt")
    Path("cut.ckpt").write_bytes(Path("good.ckpt").read_bytes()[:5000])
    torch.save({**content, "note": Touch()}, "hostile.ckpt")
    torch.save({**content, "hyper_parameters": [1]}, "strange.ckpt")
    torch.save(damaged_adapter(content), "adapter.ckpt")
    torch.save({"model": load_student("good.ckpt").state_dict()}, "teacher.pth")
    changed(student, "vanilla.ckpt", strategies=[], teacher=None, teacher_weights=None)
    changed(student, "gone.ckpt", teacher_weights="gone.pth")
    Path("folder.png").mkdir()
    Path("text").write_text("")
    before = snapshot(Path())
    done = cli("correlations", *[str(teacher.last) if word == "TEACHER" else word for word in args])
    assert (done.status, done.out) == (2, "")
    assert done.err.startswith("error: ")
    assert done.err.count("\n") == 1
    assert needle in done.err
    assert snapshot(Path()) == before


class Touch:
    """Creates a file when unpickled without restrictions."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch hacked",)


def test_a_missing_matplotlib_is_reported(student: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("matplotlib", "matplotlib.figure"):
        monkeypatch.setitem(sys.modules, name, None)
    done = cli("correlations", "--ckpt_path", student.last, "--output", "c.png")
    assert done.status == 2
    assert done.err == "error: the picture is drawn with matplotlib: run pip install '.[demo]' in the clone\n"
    assert not list(Path().iterdir())


def test_help_explains_the_figure() -> None:
    done = cli("correlations", "--help")
    assert done.status == 0
    assert "--before" in done.out
    assert "adapter" in done.out
