"""The teacher's minimum accuracy (``teacher_floor``) is checked once, before training."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader, TensorDataset

from ickd_pl import DistillationModule, UserError, get_model
from ickd_pl.strategies import KD
from ickd_pl.training.pack import Pack
from tests.runs.helpers import (
    Run,
    assert_same_run,
    cli,
    finished_run,
    fit_args,
    load,
    rows_of,
    student_args,
    subprocess_cli,
)


def test_below_the_minimum_nothing_is_trained(teacher: Run) -> None:
    reached = float(teacher.rows[-1]["test/acc1"])
    floor = f"--model.teacher_floor={reached + 0.1}"
    outcome = cli(*fit_args(Path("out"), student_args(teacher, "kd", floor)))
    assert outcome.status == 2
    message = outcome.err.strip().splitlines()[-1]
    assert f"teacher resnet20 reaches {reached:.2f} percent on the test images, below model.teacher_floor" in message
    assert not list(Path("out").rglob("*.ckpt")) + list(Path("out").rglob("metrics.csv"))


def test_an_untrained_teacher_is_refused(teacher: Run) -> None:
    content = load(teacher.last)
    for value in content["state_dict"].values():
        if value.is_floating_point() and value.ndim > 1:
            value.copy_(torch.randn(value.shape, generator=torch.Generator().manual_seed(1)))
    torch.save(content, "random.ckpt")
    args = student_args(teacher, "kd", "--model.teacher_weights=random.ckpt", "--model.teacher_floor=50")
    outcome = cli(*fit_args(Path("out"), args))
    assert outcome.status == 2
    assert "was it trained" in outcome.err


def test_above_the_minimum_the_run_equals_one_without_it(teacher: Run) -> None:
    reached = float(teacher.rows[-1]["test/acc1"])
    floor = f"--model.teacher_floor={reached - 0.1}"
    where = "digits/resnet20_resnet8/kd/seed_0"
    with_floor = finished_run(Path("with"), where, student_args(teacher, "kd", floor), epochs=1)
    without = finished_run(Path("without"), where, student_args(teacher, "kd"), epochs=1)
    assert_same_run(with_floor.path, without.path)


@pytest.mark.ddp
def test_ranks_measure_their_shares_and_agree(teacher: Run) -> None:
    reached = float(teacher.rows[-1]["test/acc1"])
    two = ["--model.teacher_floor=99.9", "--trainer.devices=2", "--trainer.strategy=ddp"]
    outcome = subprocess_cli(*fit_args(Path("out"), student_args(teacher, "kd", *two)))
    assert outcome.status == 2, outcome.err
    assert set(re.findall(r"reaches ([\d.]+) percent", outcome.err)) == {f"{reached:.2f}"}


@pytest.mark.parametrize("floor", [0.7, -1.0, 101.0, float("nan")])
def test_the_minimum_is_a_percentage(floor: float) -> None:
    with pytest.raises(UserError, match="teacher_floor: expected a percentage"):
        DistillationModule("resnet8", num_classes=10, teacher_floor=floor)


def test_a_custom_loader_is_used_for_the_measurement() -> None:
    images, labels = torch.randn(24, 3, 32, 32), torch.arange(24) % 4
    loader = DataLoader(TensorDataset(images, labels), batch_size=10)
    teacher = get_model("resnet8", 4)
    with torch.no_grad():
        reached = 100 * (teacher.eval()(images).argmax(1) == labels).float().mean().item()
    module = DistillationModule("resnet8", teacher, strategies=[KD()], num_classes=4, teacher_floor=100.0)
    trainer = pl.Trainer(max_epochs=1, logger=False, enable_checkpointing=False, num_sanity_val_steps=0)
    before = {key: value.clone() for key, value in module.state_dict().items()}
    with pytest.raises(UserError, match=f"reaches {reached:.2f} percent on the val images"):
        trainer.fit(module, loader, loader)
    assert all(torch.equal(value, before[key]) for key, value in module.state_dict().items())


def test_without_images_the_minimum_is_refused() -> None:
    loader = DataLoader(TensorDataset(torch.randn(8, 3, 32, 32), torch.arange(8) % 4), batch_size=4)
    module = DistillationModule(
        "resnet8", get_model("resnet8", 4), strategies=[KD()], num_classes=4, teacher_floor=50.0
    )
    with pytest.raises(UserError, match="there are no images to measure the teacher"):
        pl.Trainer(max_epochs=1, logger=False, enable_checkpointing=False).fit(module, loader)


@pytest.mark.parametrize("args", [["--trainer.precision=bf16-true"], ["--trainer.precision=64-true"]])
def test_the_minimum_in_other_precisions(teacher: Run, args: list[str]) -> None:
    outcome = cli(*fit_args(Path("out"), student_args(teacher, "kd", "--model.teacher_floor=2", *args)))
    assert outcome.status == 0, outcome.err


def test_the_minimum_if_the_first_epoch_is_not_evaluated(teacher: Run) -> None:
    every = "--trainer.check_val_every_n_epoch=2"
    args = student_args(teacher, "kd", "--model.teacher_floor=99.9", every)
    outcome = cli(*fit_args(Path("out"), args, epochs=2))
    assert outcome.status == 2 and "below model.teacher_floor" in outcome.err
    fine = student_args(teacher, "kd", "--model.teacher_floor=2", every)
    assert cli(*fit_args(Path("out"), fine, epochs=2)).status == 0


# -- weights of every teacher --------------------------------------------------


@pytest.fixture
def own_teacher(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Arguments with a teacher that is given by its class."""
    Path("own_teacher.py").write_text(
        "from torch import nn\nfrom ickd_pl import get_model\n"
        "class Net(nn.Module):\n"
        "    def __init__(self):\n        super().__init__()\n        self.inner = get_model('resnet8', 10)\n"
        "    def forward(self, x):\n        return self.inner(x)\n"
    )
    layers = "{stem: inner.conv1, stages: [inner.conv1, inner.bn1], final: inner.bn1, pooled: 'inner.fc:in'}"
    Path("own.yaml").write_text(
        "model:\n  student: resnet8\n  teacher: {class_path: own_teacher.Net}\n"
        f"  teacher_layers: {{class_path: ickd_pl.LayerMap, init_args: {layers}}}\n"
        "  strategies: [{class_path: KD}]\n"
    )
    monkeypatch.syspath_prepend(str(Path().resolve()))
    return ["--config=own.yaml"]


def test_a_teacher_given_by_its_class_needs_weights(own_teacher: list[str]) -> None:
    outcome = cli(*fit_args(Path("out"), own_teacher))
    assert outcome.status == 2
    message = outcome.err.strip().splitlines()[-1]
    assert "teacher own_teacher.Net has no weights: set --model.teacher_weights FILE, or" in message
    assert not Path("out").exists()
    other = cli(*fit_args(Path("out"), [*own_teacher, "--model.teacher_weights=gone.pth"]))
    assert other.status == 2 and "gone.pth does not exist: give the file of its weights" in other.err


def test_weights_of_a_teacher_given_by_its_class_are_read(own_teacher: list[str]) -> None:
    torch.manual_seed(99)  # the class draws from the run's seed
    weights = get_model("resnet8", 10).state_dict()
    torch.save({"net": {f"module.inner.{key}": value for key, value in weights.items()}}, "w.pth")
    losses = []
    for given in ("w.pth", "none"):
        root = Path("out", given)
        done = cli(*fit_args(root, [*own_teacher, f"--model.teacher_weights={given}"]))
        assert done.status == 0, done.err
        assert load(next(root.rglob("last.ckpt")))["hyper_parameters"]["teacher_weights"] == given
        losses.append(rows_of(next(root.rglob("metrics.csv")).parent)[0]["loss/kd"])
    assert losses[0] != losses[1], "all else is equal"


def test_none_is_a_registered_teacher_that_is_untrained_on_purpose(teacher: Run) -> None:
    none = ["--model.teacher_weights=none"]
    assert cli(*fit_args(Path("out"), [*student_args(teacher, "kd"), *none])).status == 0


def test_an_object_with_a_file_is_read_and_without_is_taken_as_trained() -> None:
    source, net = get_model("resnet8", 10), get_model("resnet8", 10)
    torch.save(source.state_dict(), "w.pth")
    module = DistillationModule("resnet8", net, strategies=[KD()], num_classes=10)
    module.prepare_teacher()
    assert not torch.equal(net.state_dict()["fc.weight"], source.state_dict()["fc.weight"])
    module = DistillationModule("resnet8", net, "w.pth", strategies=[KD()], num_classes=10)
    module.prepare_teacher()
    assert torch.equal(net.state_dict()["fc.weight"], source.state_dict()["fc.weight"])
    assert module.hparams["teacher_weights"] == "w.pth"


def test_members_of_a_pack_with_other_files_are_refused() -> None:
    net = get_model("resnet8", 10)
    torch.save(net.state_dict(), "w.pth")
    members = [DistillationModule("resnet8", net, file, strategies=[KD()], num_classes=10) for file in (None, "w.pth")]
    with pytest.raises(UserError, match="share one teacher"):
        Pack(members, ["a", "b"])
