"""``export`` on the command line: a trained student with its configuration, and errors in one line."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import pytest
import torch
from safetensors import safe_open

from ickd_pl import Digits, load_student, load_teacher
from ickd_pl.weights import read_config
from ickd_pl.weights.formats import FORMATS
from tests.runs.helpers import Run, cli, load, snapshot


def test_a_trained_student_in_every_format(student: Run) -> None:
    images = torch.randn(64, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    net = load_student(student.last)
    with torch.no_grad():
        expected = torch.cat([net(batch) for batch in images.split(7)])
    before = snapshot(student.path)
    for name, how in FORMATS.items():
        path = Path(f"out/student{how.suffix}")
        done = cli("export", "--ckpt_path", student.last, "--format", name, "--output", path)
        assert (done.status, done.err) == (0, "")
        assert done.out.startswith(f"wrote {path} (resnet8, 10 classes, 0.")
        assert len(done.out.splitlines()) == 1
        assert f'"{path}"' in done.out
    assert sorted(p.name for p in Path("out").iterdir()) == sorted(f"student{how.suffix}" for how in FORMATS.values())
    assert snapshot(student.path) == before

    with torch.no_grad():
        assert torch.equal(torch.cat([load_student("out/student.safetensors")(b) for b in images.split(7)]), expected)
        assert torch.equal(torch.cat([load_student("out/student.pth")(b) for b in images.split(7)]), expected)
        assert torch.equal(
            torch.cat([load_teacher("resnet8", "out/student.pth", 10)(b) for b in images.split(7)]), expected
        )
        program = torch.export.load("out/student.pt2").module()
        assert (torch.cat([program(b) for b in images.split(7)]) - expected).abs().max() < 1e-5
    session = onnxruntime.InferenceSession("out/student.onnx")
    got = torch.cat([torch.from_numpy(session.run(None, {"image": b.numpy()})[0]) for b in images.split(7)])
    assert (got - expected).abs().max() < 1e-5


def test_the_configuration_is_that_of_the_data(student: Run) -> None:
    """The values of the training run, not recomputed ones."""
    cli("export", "--ckpt_path", student.last, "--format", "safetensors", "--output", "s.safetensors")
    config, data = read_config("s.safetensors"), Digits(train_size=100)
    assert config == read_config(student.last)
    assert (config.network, config.num_classes, config.image_size) == ("resnet8", 10, 32)
    assert (config.mean, config.std) == (data.mean, data.std)
    assert config.class_names == list("0123456789")


def test_repdistiller_format_has_epoch_and_accuracy(student: Run) -> None:
    cli("export", "--ckpt_path", student.last, "--format", "repdistiller", "--output", "s.pth")
    content = torch.load("s.pth", weights_only=True)
    assert content["epoch"] == 3
    assert content["best_acc"] == pytest.approx(float(student.rows[-1]["test/acc1"]), abs=1e-4)


def test_onnx_has_its_opset_and_a_dynamic_batch_size(student: Run) -> None:
    cli("export", "--ckpt_path", student.last, "--format", "onnx", "--output", "s.onnx")
    model = onnx.load("s.onnx")
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 18)]
    shapes = {
        value.name: [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in (*model.graph.input, *model.graph.output)
    }
    assert shapes == {"image": ["batch", 3, 32, 32], "logits": ["batch", 10]}


def test_an_exported_file_can_be_exported_again(student: Run) -> None:
    """Without the checkpoint: the file contains all that another format needs."""
    cli("export", "--ckpt_path", student.last, "--format", "safetensors", "--output", "s.safetensors")
    done = cli("export", "--ckpt_path", "s.safetensors", "--format", "repdistiller")
    assert done.status == 0, done.err
    assert read_config("student.pth") == read_config(student.last)


def copied(student: Run, where: str, **changes: Any) -> Path:
    """A copy of a checkpoint with other entries; None removes one."""
    content = load(student.last)
    for name, value in changes.items():
        content[name] = value
        if value is None:
            del content[name]
    path = Path(where)
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(content, path)
    return path


def test_the_file_is_written_to_the_run_folder_and_not_overwritten(student: Run) -> None:
    last = copied(student, "run/checkpoints/last.ckpt")
    args = ["export", "--ckpt_path", last, "--format", "safetensors"]
    assert cli(*args).status == 0
    path = Path("run/student.safetensors")
    with safe_open(path, "pt") as file:
        assert file.metadata()["format"] == "pt"
    path.write_bytes(b"mine")
    again = cli(*args)
    assert again.status == 2
    assert again.err.count("\n") == 1
    assert "run/student.safetensors exists: give another --output, or --overwrite" in again.err
    assert path.read_bytes() == b"mine"
    assert cli(*args, "--overwrite").status == 0
    load_student(path)
    assert sorted(p.name for p in Path("run").iterdir()) == ["checkpoints", "student.safetensors"]


def test_a_checkpoint_without_normalisation_constants(student: Run) -> None:
    last = copied(student, "last.ckpt", Digits=None)
    done = cli("export", "--ckpt_path", last, "--format", "safetensors")
    assert done.status == 0, done.err
    assert "note: last.ckpt lacks the normalisation of its images" in done.out
    config = read_config("student.safetensors")
    assert (config.network, config.mean, config.std, config.class_names) == ("resnet8", None, None, None)


@pytest.mark.parametrize(
    ("args", "needle"),
    [
        ([], "required: --ckpt_path, --format"),
        (["--format", "onnx"], "required: --ckpt_path"),
        (["--ckpt_path", "good.ckpt"], "required: --format"),
        (["--ckpt_path", "good.ckpt", "--format", "onx"], "unknown onx: did you mean onnx?"),
        (["--ckpt_path", "good.ckpt", "--format", "onnx", "--ouput", "x"], "unknown --ouput: did you mean --output"),
        (["--ckpt_path", "none.ckpt", "--format", "onnx"], "none.ckpt does not exist"),
        (["--ckpt_path", "folder", "--format", "onnx"], "folder is a folder"),
        (["--ckpt_path", "teacher.pth", "--format", "onnx"], "teacher.pth is not a checkpoint of ickd_pl"),
        (["--ckpt_path", "cut.ckpt", "--format", "onnx"], "cut.ckpt is damaged"),
        (["--ckpt_path", "hostile.ckpt", "--format", "onnx"], "hostile.ckpt is refused: it wants to run code"),
        (["--ckpt_path", "own.ckpt", "--format", "onnx"], "ickd_pl.weights.export_student(net, path, format)"),
        (["--ckpt_path", "strange.ckpt", "--format", "onnx"], "strange.ckpt: its configuration is damaged"),
        (["--ckpt_path", "other.ckpt", "--format", "onnx"], "other.ckpt does not fit resnet20"),
        (["--ckpt_path", "good.ckpt", "--format", "onnx", "--output", "x.pt"], "ends in .onnx"),
        (["--ckpt_path", "good.ckpt", "--format", "onnx", "--output", "folder.onnx"], "folder.onnx is a folder"),
        (["--ckpt_path", "good.ckpt", "--format", "repdistiller", "--output", "text/x.pth"], "cannot write text/x.pth"),
        (["--ckpt_path", "e.safetensors", "--format", "safetensors", "--output", "e.safetensors", "--overwrite"],
         "e.safetensors is the file to export"),
    ],
)  # fmt: skip
def test_errors_are_one_line_and_leave_no_files(student: Run, args: list[str], needle: str) -> None:
    arguments = load(student.last)["hyper_parameters"]
    good = copied(student, "good.ckpt")
    Path("cut.ckpt").write_bytes(good.read_bytes()[: good.stat().st_size // 2])
    copied(student, "own.ckpt", hyper_parameters={k: v for k, v in arguments.items() if k != "student"})
    copied(student, "strange.ckpt", hyper_parameters=[1])
    copied(student, "other.ckpt", hyper_parameters={**arguments, "student": "resnet20"})
    copied(student, "hostile.ckpt", note=Touch())
    torch.save({"model": load_student(good).state_dict()}, "teacher.pth")
    Path("text").write_text("")
    for folder in ("folder", "folder.onnx"):
        Path(folder).mkdir()
    cli("export", "--ckpt_path", good, "--format", "safetensors", "--output", "e.safetensors")
    before = snapshot(Path())
    done = cli("export", *args)
    assert (done.status, done.out) == (2, "")
    assert done.err.startswith("error: ")
    assert done.err.count("\n") == 1
    assert needle in done.err
    assert snapshot(Path()) == before


class Touch:
    """Creates a file when unpickled without restrictions."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch hacked",)


@pytest.mark.parametrize("library", ["onnx", "onnxscript"])
def test_a_missing_library_is_reported(student: Run, monkeypatch: pytest.MonkeyPatch, library: str) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    done = cli("export", "--ckpt_path", student.last, "--format", "onnx", "--output", "s.onnx")
    assert done.status == 2
    assert done.err == f"error: format onnx needs {library}: run pip install '.[export]' in the clone\n"
    assert not list(Path().iterdir())


def test_without_onnxruntime_the_file_is_written_but_not_verified(
    student: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    done = cli("export", "--ckpt_path", student.last, "--format", "onnx", "--output", "s.onnx")
    assert done.status == 0, done.err
    assert "note: not verified, because onnxruntime is missing" in done.out
    onnx.checker.check_model("s.onnx")
