"""``teachers verify`` and ``teachers train`` on the real command line."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from torchvision import datasets

from ickd_pl import load_teacher
from ickd_pl.data import CIFAR100
from tests.data.cifar_source import make_source
from tests.runs.helpers import QUIET, Run, cli, load, snapshot
from tests.teachers.mirror import FILE, manifest, sha256, weights

SHORT = ["--data=Digits", "--data.init_args.train_size=64", "--trainer.max_epochs=2", "--model.milestones=[1]", *QUIET]


@pytest.fixture
def cifar(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Arguments for a synthetic CIFAR-100 of 200 test images; resnet8 is a published teacher of 1 percent accuracy."""
    monkeypatch.setattr(CIFAR100, "num_available", 200)
    folder = make_source(Path("src") / "cifar-100-python", datasets.CIFAR100, "fine_labels", 100, monkeypatch)
    file = Path("checkpoints") / FILE.format("resnet8")
    file.parent.mkdir(parents=True)
    file.write_bytes(weights())
    return ["--data.root", "data", "--data.archive", str(folder)]


def published(acc1: float) -> None:
    path = manifest({"resnet8": ["http://127.0.0.1:9/a.pth"]}, path="checkpoints/manifest.json")
    content = json.loads(path.read_text())
    content["teachers"]["resnet8"]["published_acc1"] = acc1
    path.write_text(json.dumps(content))


def measured(args: list[str]) -> float:
    outcome = cli("teachers", "verify", "resnet8", "--expected", "0", *args)
    assert outcome.status == 0, outcome.err
    return float(re.search(r"resnet8: ([\d.]+) percent", outcome.out)[1])  # type: ignore[index]


def test_a_teacher_as_published_is_verified(cifar: list[str]) -> None:
    published(50.0)
    acc1 = measured(cifar)
    assert acc1 < 10  # it was never trained
    published(acc1)
    outcome = cli("teachers", "verify", "resnet8", *cifar)
    assert outcome.status == 0, outcome.err
    assert f"published are {acc1:.2f} (+0.00): good" in outcome.out
    entry = json.loads(Path("checkpoints/manifest.json").read_text())["teachers"]["resnet8"]
    assert entry["status"] == "verified" and entry["measured_acc1"] == acc1
    assert entry["sha256"] == sha256((Path("checkpoints") / FILE.format("resnet8")).read_bytes())
    assert "verified" in cli("teachers", "list").out


def test_a_teacher_below_the_published_accuracy_is_refused(cifar: list[str]) -> None:
    published(72.34)
    before = Path("checkpoints/manifest.json").read_bytes()
    outcome = cli("teachers", "verify", "resnet8", *cifar)
    assert outcome.status == 2
    assert "published are 72.34 (-" in outcome.err and "ckpt_epoch_240.pth is not that teacher" in outcome.err
    assert Path("checkpoints/manifest.json").read_bytes() == before


def test_verify_measures_any_file_on_any_data(teacher: Run) -> None:
    args = ["teachers", "verify", "resnet20", "--file", teacher.last, "--data", "Digits"]
    acc1 = float(teacher.rows[-1]["test/acc1"])
    told = cli(*args)
    assert told.status == 0, told.err
    assert f"resnet20: {acc1:.2f} percent on the test images of digits; nothing to compare with" in told.out
    assert cli(*args, "--expected", acc1 + 0.1).status == 0
    assert cli(*args, "--expected", acc1 + 0.3).status == 2
    assert cli(*args, "--expected", acc1 + 0.3, "--tolerance", "0.5").status == 0
    assert not list(Path().iterdir())


@pytest.mark.parametrize(
    ("args", "needles"),
    [
        (["verify"], ["NAME"]),
        (["verify", "resnet56"], ["does not exist", "teachers fetch resnet56"]),
        (["verify", "resnet20"], ["resnet20 is not in", "--file"]),
        (["verify", "resnet56", "--file", "none.pth"], ["none.pth does not exist"]),
        (["verify", "resnet56", "--tolerance", "-1"], ["--tolerance: expected 0 or more"]),
        (["verify", "resnet56", "--tolerence", "1", "--file", "w.pth"], ["tolerence"]),
        (["verify", "resnet56", "--file", "w.pth", "--data", "Digits"], ["w.pth does not fit resnet56"]),
        (["train", "resnet57"], ["unknown network", "resnet56"]),
        (["train", "resnet8", "--trainer.max_epoch", "2"], ["unknown option --trainer.max_epoch"]),
        (["train", "resnet8", "--seed", "-1", *SHORT], ["seed_everything"]),
        (["train", "resnet8", *SHORT, "--model.student", "resnet14"], ["trains the named network"]),
        (["train", "resnet8", *SHORT, "--output", "there.pth/teacher.pth"], ["cannot write there.pth/teacher"]),
        (["train", "resnet8", *SHORT, "--output", "there.pth"], ["there.pth exists", "--overwrite"]),
    ],
)
def test_mistakes_are_one_line(args: list[str], needles: list[str]) -> None:
    Path("there.pth").write_bytes(b"precious")
    Path("w.pth").write_bytes(weights())
    outcome = cli("teachers", *args)
    assert outcome.status == 2, outcome.out
    message = outcome.err.strip().splitlines()[-1]
    assert all(needle in message for needle in needles), message
    assert Path("there.pth").read_bytes() == b"precious"
    assert not list(Path().rglob("*.ckpt")), "nothing is trained"


def test_train_writes_the_published_format() -> None:
    outcome = cli("teachers", "train", "resnet8", "--seed", "3", *SHORT)
    assert outcome.status == 0, outcome.err
    path = Path("checkpoints/digits/resnet8_vanilla/ckpt_epoch_2.pth")
    assert f"wrote {path}" in outcome.out
    content = torch.load(path, weights_only=True)
    assert set(content) == {"epoch", "model", "best_acc", "config"} and content["epoch"] == 2
    assert (
        content["config"]["mean"]
        == load(Path("outputs/digits/resnet8/vanilla/seed_3/checkpoints/last.ckpt"))["Digits"]["mean"]
    )  # which auto of teacher_normalization reads
    run = Path("outputs/digits/resnet8/vanilla/seed_3")
    trained = load(run / "checkpoints" / "last.ckpt")["state_dict"]
    net = load_teacher("resnet8", path, num_classes=10)
    assert all(torch.equal(value, trained[f"student.{key}"]) for key, value in net.state_dict().items())
    told = cli(
        "teachers", "verify", "resnet8", "--file", path, "--data", "Digits", "--expected", float(content["best_acc"])
    )
    assert told.status == 0 and "(+0.00): good" in told.out

    before = snapshot(Path("outputs"))
    refused = cli("teachers", "train", "resnet8", "--seed", "3", *SHORT)
    assert refused.status == 2 and "exists: give another --output" in refused.err
    path.unlink()
    again = cli("teachers", "train", "resnet8", "--seed", "3", *SHORT)
    assert again.status == 0 and "already finished" in again.out
    assert torch.equal(torch.load(path, weights_only=True)["model"]["fc.weight"], content["model"]["fc.weight"])
    assert snapshot(Path("outputs")) == before


def test_cifar100_teachers_are_written_to_the_published_path(cifar: list[str]) -> None:
    args = [*cifar, "--data.eval_batch_size=100", "--trainer.max_epochs=1", "--model.milestones=[]", *QUIET]
    outcome = cli("teachers", "train", "resnet14", "--data=CIFAR100", *args)
    assert outcome.status == 0, outcome.err
    assert Path("checkpoints/resnet14_vanilla/ckpt_epoch_1.pth").is_file()
