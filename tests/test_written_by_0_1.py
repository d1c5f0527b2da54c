"""Files written by version 0.1 load, test, resume, export and are reported; see tests/written_by_0_1/README.md.

Stored weights are compared bit for bit; those trained from them only approximately, because processors differ.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ickd_pl import DistillationModule, load_student, load_teacher
from ickd_pl.data import Digits
from tests.runs.helpers import QUIET, cli, load, rows_of
from tests.written_by_0_1.own_net import LAYERS, net

OLD = Path(__file__).parent / "written_by_0_1"
RUNS = ["fit_kd_ickd", "fit_crd", "fit_fsp"]
CPU = ["--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false"]


@pytest.fixture(autouse=True)
def copied() -> None:
    """Work in a copy: the paths in the files are relative to it."""
    shutil.copytree(OLD, Path(), dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))


def expected(root: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(Path(root, "expected.json").read_text())
    return content


def run_folder(root: str) -> Path:
    (folder,) = Path(root).glob("digits/*/*/seed_0")
    return folder


def hash_of(state: dict[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for key, value in sorted(state.items()):
        digest.update(key.encode())
        digest.update(value.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def accuracy_of(checkpoint: Path) -> float:
    done = cli("test", "--ckpt_path", checkpoint, *CPU)
    assert done.status == 0, done.err
    found = re.search(r"test/acc1\D+([0-9.]+)", done.out)
    assert found is not None, done.out
    return float(found[1])


@pytest.mark.parametrize("root", [*RUNS, "finished"])
def test_a_checkpoint_loads_tests_and_exports(root: str) -> None:
    held = expected(root)["stopped"] or expected(root)["whole"]
    last = run_folder(root) / "checkpoints" / "last.ckpt"
    module = DistillationModule.load_from_checkpoint(last)
    assert hash_of(module.student.state_dict()) == held["student_sha256"]
    assert hash_of(module.adapters.state_dict()) == held["adapters_sha256"]
    assert accuracy_of(last) == pytest.approx(expected(root)["tested_stopped"] or expected(root)["tested_whole"], abs=1)
    assert cli("export", "--ckpt_path", last, "--format", "safetensors", "--output", "s.safetensors").status == 0
    assert hash_of(load_student("s.safetensors").state_dict()) == held["student_sha256"]


@pytest.mark.parametrize("root", RUNS)
def test_the_same_command_resumes(root: str) -> None:
    whole = expected(root)["whole"]
    before = rows_of(run_folder(root))
    done = cli(*json.loads(Path(root, "words.json").read_text()))
    assert done.status == 0, done.err
    assert "continuing " in done.out
    rows = rows_of(run_folder(root))
    # Later versions write more columns.
    assert [{k: row[k] for k in old} for row, old in zip(rows, before, strict=False)] == before
    assert [float(row["epoch"]) for row in rows] == [row["epoch"] for row in whole["rows"]]
    first, then = rows[len(before)], whole["rows"][len(before)]
    for name in ("loss/ce", "loss/total", "lr"):
        assert float(first[name]) == pytest.approx(then[name], rel=0.02)
    content = load(run_folder(root) / "checkpoints" / "last.ckpt")
    assert (content["epoch"], content["global_step"]) == (whole["epoch"], whole["global_step"])


def test_a_finished_run_stays_finished() -> None:
    before = (run_folder("finished") / "checkpoints" / "last.ckpt").read_bytes()
    done = cli(*json.loads(Path("finished/words.json").read_text()))
    assert done.status == 0, done.err
    assert done.out.startswith("already finished: ")
    assert (run_folder("finished") / "checkpoints" / "last.ckpt").read_bytes() == before


def test_teacher_weights() -> None:
    file = "teacher/digits/resnet20_vanilla/ckpt_epoch_4.pth"
    assert cli("teachers", "verify", "resnet20", "--file", file, "--data=Digits", "--expected=92.22").status == 0


def test_exported_students() -> None:
    torch.manual_seed(0)
    image = torch.randn(2, 3, 32, 32)
    logits = {k: torch.tensor(v) for k, v in expected("exports")["logits"].items()}
    readers = {
        "student.safetensors": load_student,
        "student.pth": lambda path: load_teacher("resnet8", path, 10),
        "student.pt2": lambda path: torch.export.load(path).module(),
    }
    if torch.__version__ < (2, 14):  # by which it was written; older versions do not read newer programs
        del readers["student.pt2"]
    for name, reader in readers.items():
        with torch.no_grad():
            torch.testing.assert_close(reader(f"exports/{name}")(image)[:, :5], logits[name], atol=1e-4, rtol=1e-4)


def test_a_checkpoint_of_a_custom_network() -> None:
    (path,) = Path("python/checkpoints").glob("*.ckpt")
    teacher = load_teacher("resnet20", "teacher/digits/resnet20_vanilla/ckpt_epoch_4.pth", 10)
    module = DistillationModule.load_from_checkpoint(path, student=net(), student_layers=LAYERS, teacher=teacher)
    state = load(path)["state_dict"]
    assert len(state) == len([key for key in module.state_dict() if not key.startswith("teacher.")])
    for key, value in state.items():
        assert torch.equal(module.state_dict()[key], value), key
    assert Digits.load_from_checkpoint(path).train_size == 200
    outcome = cli("test", "--ckpt_path", path, *QUIET)
    assert outcome.status == 2
    assert "has a network of your own" in outcome.err


def test_a_results_folder_is_read_but_not_resumed() -> None:
    cells = json.loads(Path("results_expected.json").read_text())["whole"]
    files = {p: p.read_bytes() for p in Path("results/cells").rglob("*") if p.is_file()}
    status = cli("bench", "status", "--output", "results")
    assert status.status == 0, status.err
    for cell, result in cells.items():
        assert f"done      {cell} {result['acc1_last']:.2f}" in status.out
    report = cli("bench", "report", "--output", "results")
    assert report.status == 0, report.err
    text = Path("results/report.csv").read_text()
    assert all(f",{result['acc1_last']:g}," in text for result in cells.values())
    for more in ([], ["--config", "results_input.yaml"]):
        done = cli("bench", "run", "--output", "results", *more)
        assert done.status == 2, done
        assert done.err.count("\n") == 1
        assert "was started by an older version of ickd_pl" in done.err
    assert {p: p.read_bytes() for p in Path("results/cells").rglob("*") if p.is_file() and p.name[0] != "."} == files


@pytest.mark.reliability
def test_a_pack_that_was_killed() -> None:
    """It is read, refused because the code differs, and resumed if the user accepts that."""
    cells = json.loads(Path("results_half_expected.json").read_text())["whole"]
    status = cli("bench", "status", "--output", "results_half")
    assert "half done resnet20_resnet8/kd/seed_0 epoch 1 of 2" in status.out
    done = cli("bench", "run", "--output", "results_half")
    assert done.status == 2
    assert "was started by an older version of ickd_pl" in done.err
    done = cli("bench", "run", "--output", "results_half", "--accept-code")
    assert done.status == 0, done.err
    for method in ("vanilla", "kd"):
        cell = f"resnet20_resnet8/{method}/seed_0"
        rows = rows_of(Path("results_half/cells", cell))
        whole = cells[cell]["rows"]
        assert len(rows) == 2
        assert float(rows[0]["loss/ce"]) == whole[0]["loss/ce"], "the epoch before the kill was trained again"
        assert float(rows[1]["loss/ce"]) == pytest.approx(whole[1]["loss/ce"], rel=0.02)
