"""What the interface offers beyond a loss of features, each with a tiny method of its own."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from ickd_pl import Batch, Digits, DistillationModule, Features, LossStrategy, UserError, get_model, load_student
from ickd_pl.data.batch import DataInfo
from ickd_pl.models.base import FeatureNet
from ickd_pl.models.deployed import DeployedNet, Head
from ickd_pl.models.features import FeatureShapes
from ickd_pl.models.hooked import HookedNet, LayerMap
from ickd_pl.strategies import CTKD, FSP, KD, SimKD
from ickd_pl.training.pack import Pack
from ickd_pl.training.speed import _loss
from ickd_pl.weights import export_student, load_weights, read_config
from tests.training.packs import make_teacher, packed, solo

QUIET: dict[str, Any] = {
    "logger": False, "enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False,
    "accelerator": "cpu", "num_sanity_val_steps": 0, "use_distributed_sampler": False,
}  # fmt: skip


def data() -> Digits:
    return Digits(train_size=72, batch_size=32)


def fitted(module: pl.LightningModule, epochs: int = 1, **settings: Any) -> pl.Trainer:
    trainer = pl.Trainer(max_epochs=epochs, **{**QUIET, "limit_val_batches": 1, **settings})
    trainer.fit(module, data())
    return trainer


def images(size: int = 4) -> Tensor:
    return torch.randn(size, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def batch() -> Batch:
    return Batch(images(), torch.arange(4), torch.arange(4))


# -- the last layers of both networks ----------------------------------------------------------------------------------


@dataclass(eq=False)
class Crossed(LossStrategy):
    """The teacher's last layer on the student's vector, and the student's on its own one."""

    weight: float = 1.0

    def loss(self, student: Features, teacher: Features, batch: Batch, adapter: nn.Module | None) -> Tensor:
        assert student.classifier is not None and teacher.classifier is not None
        return (teacher.classifier(student.pooled) - teacher.logits).square().mean() + student.classifier(
            student.pooled
        ).square().mean()


@pytest.mark.parametrize("hooked", [False, True], ids=["own network", "LayerMap"])
def test_last_layers(hooked: bool) -> None:
    teacher = get_model("resnet8", 10).eval()
    nets: list[nn.Module] = [get_model("resnet8", 10), teacher]
    layers: dict[str, LayerMap] = {}
    if hooked:
        nets = [nn.Sequential(net) for net in nets]
        found = LayerMap("0.conv1", ("0.layer1.0", "0.layer3.0"), "0.layer3.0", "0.fc:in", classifier="0.fc")
        layers = {"student_layers": found, "teacher_layers": found}
    module = DistillationModule(*nets, strategies=[Crossed()], ce_weight=0.0, num_classes=10, **layers)  # type: ignore[arg-type]
    own = module.student.features(images())
    assert own.classifier is not None
    torch.testing.assert_close(own.classifier(own.pooled), own.logits)
    module.losses(batch())[0].backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in module.student.parameters())
    assert module.teacher is not None and all(p.grad is None for p in module.teacher.parameters())
    assert not module.adapters


def test_last_layers_that_are_not() -> None:
    layers = LayerMap(stem="0", stages=("0",), final="0", pooled="2", classifier="3")

    def net(*rest: nn.Module) -> nn.Module:
        return nn.Sequential(nn.Conv2d(3, 4, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), *rest)

    with pytest.raises(UserError, match=r"no layer '9' in Sequential"):
        HookedNet(net(nn.Linear(4, 10)), replace(layers, classifier="9"))
    with pytest.raises(UserError, match=r"a linear layer, but '2' of Sequential is Flatten: the last one is 3"):
        HookedNet(net(nn.Linear(4, 10)), replace(layers, classifier="2"))
    for wrong in (net(nn.Linear(4, 10), nn.Softmax(1)), net(nn.Linear(4, 6), nn.Linear(6, 10))):
        with pytest.raises(UserError, match=r"its layer '3' does not turn the pooled vector \(4,\) into the"):
            DistillationModule(wrong, student_layers=layers, num_classes=10)


# -- the epoch ---------------------------------------------------------------------------------------------------------


class Epochs(LossStrategy):
    """Its loss is the epoch; keeps what it has seen."""

    def __init__(self, weight: float = 1.0) -> None:
        self.weight = weight
        self.seen: list[int | None] = []

    def loss(self, student: Features, teacher: Features, batch: Batch, adapter: nn.Module | None) -> Tensor:
        self.seen.append(None if self.main_epoch is None else int(self.main_epoch))
        factor = 1.0 if self.main_epoch is None else self.main_epoch
        return factor * student.logits.square().mean()


def test_epoch_of_a_loss() -> None:
    """Also in a pack, and after a checkpoint: the number is the main epoch's."""
    teacher = make_teacher()
    alone, members = Epochs(), [Epochs(), Epochs()]
    module = DistillationModule("resnet8", teacher, strategies=[alone], num_classes=10)
    trainer = fitted(module, epochs=2)
    assert alone.seen == [1, 1, 1, 2, 2, 2]
    trainer.save_checkpoint("two.ckpt")
    module.losses(batch())
    assert alone.seen[-1] is None
    fitted(Pack([DistillationModule("resnet8", teacher, strategies=[m], num_classes=10) for m in members], ["a", "b"]))
    assert [m.seen for m in members] == [[1, 1, 1]] * 2
    later = Epochs()
    longer = pl.Trainer(max_epochs=3, **QUIET)
    again = DistillationModule("resnet8", teacher, strategies=[later], num_classes=10)
    longer.fit(again, data(), ckpt_path="two.ckpt")
    assert later.seen == [3, 3, 3]


def test_a_compiled_loss_follows_the_epoch_without_being_compiled_again() -> None:
    compiled: list[Any] = []

    def backend(graph: Any, inputs: Any) -> Any:
        compiled.append(graph)
        return graph.forward

    loss = torch.compile(_loss, backend=backend, dynamic=False, fullgraph=True)
    module = DistillationModule("resnet8", make_teacher(), strategies=[CTKD()], num_classes=10)
    (method,), theta = module.strategies, module.adapters["ctkd"].theta
    student, teacher = module.student.features(images()), module.teacher_features(images(), False)
    method.main_epoch = torch.ones((), dtype=torch.int64)
    found = []
    for epoch in (1, 2, 3):
        method.main_epoch.fill_(epoch)
        value = loss(method, student, teacher, batch(), module.adapters["ctkd"])
        (gradient,) = torch.autograd.grad(value, theta, retain_graph=True)
        found.append(float(gradient))
    assert len(compiled) == 1 and len(set(found)) == 3


def test_epoch_follows_a_first_stage() -> None:
    first, epochs = FSP(pretrain_epochs=1), Epochs()
    module = DistillationModule("resnet8", make_teacher(), strategies=[first, epochs], num_classes=10)
    fitted(module, epochs=1)
    assert epochs.seen == [1, 1, 1]


# -- a changed student -------------------------------------------------------------------------------------------------


@dataclass(eq=False)
class Prepares(LossStrategy):
    """Draws the student's last layer anew."""

    weight: float = 1.0

    def prepare(self, student: FeatureNet | HookedNet) -> None:
        layer = student.last_linear()
        assert layer is not None
        nn.init.normal_(layer.weight)

    def check(self, student: FeatureShapes, teacher: FeatureShapes) -> None:
        assert student.classifier == (10, 64)

    def loss(self, student: Features, teacher: Features, batch: Batch, adapter: nn.Module | None) -> Tensor:
        return student.logits.square().mean()


def test_prepared_student() -> None:
    teacher = make_teacher()
    keys = get_model("resnet8", 10).state_dict().keys()

    def weight(seed: int) -> Tensor:
        net = DistillationModule("resnet8", teacher, strategies=[Prepares()], num_classes=10, seed=seed).student
        assert net.state_dict().keys() == keys
        return net.get_parameter("fc.weight")

    before = torch.get_rng_state()
    assert torch.equal(weight(0), weight(0)) and not torch.equal(weight(0), weight(1))
    assert weight(0).std() > 0.9  # PyTorch's own start is a tenth of that
    assert torch.equal(torch.get_rng_state(), before)


# -- another prediction ------------------------------------------------------------------------------------------------


class Turned(Head):
    """Scales every class's score, and turns their order."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.arange(num_classes, 0, -1).float())

    def settings(self) -> dict[str, Any]:
        return {"num_classes": len(self.scale)}

    def forward(self, features: Features) -> Features:
        return replace(features, logits=-self.scale * features.logits, classifier=None)


@dataclass(eq=False)
class Turns(LossStrategy):
    """Cross entropy on the turned scores."""

    predicts = True
    weight: float = 1.0

    def build(self, student: FeatureShapes, teacher: FeatureShapes, data: DataInfo) -> nn.Module:
        return Turned(data.num_classes)

    def loss(self, student: Features, teacher: Features, batch: Batch, adapter: nn.Module | None) -> Tensor:
        return nn.functional.cross_entropy(student.logits, batch.label)


def turned(teacher: nn.Module, *more: LossStrategy) -> DistillationModule:
    return DistillationModule("resnet8", teacher, strategies=[Turns(), *more], num_classes=10, milestones=[1])


def expected_logits(module: DistillationModule, image: Tensor) -> Tensor:
    head = module.adapters["turns"]
    return -head.scale * module.student.eval()(image)  # type: ignore[operator]


def test_prediction_in_training_and_evaluation(tmp_path: Path) -> None:
    module = turned(make_teacher(), KD())
    _, terms, logits = module.losses(batch())
    own = module.student.features(images())  # in training mode, so of the same batch statistics
    torch.testing.assert_close(logits, -module.adapters["turns"].scale * own.logits)  # type: ignore[operator]
    # The cross entropy and the other method read the student's own last layer.
    torch.testing.assert_close(terms["ce"], nn.functional.cross_entropy(own.logits, batch().label))
    assert terms["ce"] != terms["turns"]

    trainer = fitted(module)
    measured = float(trainer.callback_metrics["test/acc1"])
    module.eval()
    torch.testing.assert_close(module(images()), expected_logits(module, images()))
    trainer.save_checkpoint(tmp_path / "run.ckpt")
    for strategies in ({}, {"strategies": []}):  # the command line evaluates without methods
        again = DistillationModule.load_from_checkpoint(tmp_path / "run.ckpt", **strategies)
        quiet = pl.Trainer(limit_test_batches=1, limit_predict_batches=1, **QUIET)
        assert quiet.test(again, data(), verbose=False)[0]["test/acc1"] == measured
        assert quiet.validate(again, data(), verbose=False)[0]["test/acc1"] > -1
        (found, *_) = quiet.predict(again, data())  # type: ignore[misc]
        image = next(iter(data_of_test())).image
        torch.testing.assert_close(found, expected_logits(module, image).softmax(1), rtol=1e-4, atol=1e-6)
    with pytest.raises(UserError, match=r"by a head of its checkpoint, which no method of this run trains"):
        fitted(DistillationModule.load_from_checkpoint(tmp_path / "run.ckpt", strategies=[]))


def data_of_test() -> Any:
    module = data()
    module.setup("test")
    return module.test_dataloader()


def test_prediction_in_files_and_as_a_teacher(tmp_path: Path) -> None:
    module = turned(make_teacher())
    fitted(module).save_checkpoint(tmp_path / "run.ckpt")
    expected = expected_logits(module.eval(), images())
    student = load_student(tmp_path / "run.ckpt")
    assert isinstance(student, DeployedNet)
    assert torch.equal(student(images()), expected)
    for format, name in (("safetensors", "s.safetensors"), ("repdistiller", "s.pth"), ("torch_export", "s.pt2")):
        assert export_student(student, tmp_path / name, format).verified
        if format != "torch_export":
            assert read_config(tmp_path / name).head == {"class_path": "Turned", "init_args": {"num_classes": 10}}
            torch.testing.assert_close(load_student(tmp_path / name)(images()), expected)
    # The bare network would predict something else: it is read only where it is asked for.
    for name in ("run.ckpt", "s.pth", "s.safetensors"):
        with pytest.raises(UserError, match=r"predicts by another head than the last layer of resnet8: read it with"):
            load_weights(get_model("resnet8", 10), tmp_path / name, "resnet8")
    bare = get_model("resnet8", 10).eval()
    load_weights(bare, f"{tmp_path / 'run.ckpt'}#state_dict.student", "resnet8")
    assert torch.equal(bare(images()), module.student(images()))
    # A callback's average of the whole module.
    content = torch.load(tmp_path / "run.ckpt", weights_only=True)
    content["callbacks"]["Average"] = {"kept": {f"module.{k}": v.clone() for k, v in content["state_dict"].items()}}
    content["callbacks"]["Average"]["kept"]["module.adapters.turns.scale"] *= 2
    torch.save(content, tmp_path / "averaged.ckpt")
    assert torch.equal(load_student(f"{tmp_path / 'averaged.ckpt'}#kept")(images()), 2 * expected)
    # As a teacher, folded in the run, and as a student that is trained on.
    taught = DistillationModule("resnet8", student, strategies=[KD()], num_classes=10)
    fitted(taught)
    torch.testing.assert_close(taught.teacher_features(images(), False).logits, expected)
    assert taught.teacher_name == "resnet8_Turned"
    fitted(DistillationModule(load_student(tmp_path / "run.ckpt"), num_classes=10))


def test_damaged_heads(tmp_path: Path) -> None:
    fitted(turned(make_teacher())).save_checkpoint(tmp_path / "run.ckpt")
    content = torch.load(tmp_path / "run.ckpt", weights_only=True)
    good = content["ickd_pl"]["head"]
    assert good == {"adapter": "turns", "class_path": "Turned", "init_args": {"num_classes": 10}}
    for wrong, message in (
        (3, "its head is damaged, 3"),
        ({**good, "adapter": "a.*"}, "its head is damaged"),
        ({**good, "class_path": "os.system"}, "unknown head 'os.system': import the module that defines it"),
        ({**good, "init_args": {"num_classes": "x"}}, "num_classes is 'x', which a file may not set"),
        ({**good, "init_args": {"command": "x"}}, "unknown setting 'command'"),
    ):
        content["ickd_pl"]["head"] = wrong
        torch.save(content, tmp_path / "bad.ckpt")
        with pytest.raises(UserError, match=message) as caught:
            load_student(tmp_path / "bad.ckpt")
        assert str(tmp_path / "bad.ckpt") in str(caught.value)


def test_one_prediction_a_run_and_heads_only_of_methods_that_predict() -> None:
    with pytest.raises(UserError, match=r"Turns and SimKD each replace how the student predicts: a run can have one"):
        turned(make_teacher(), SimKD())

    class Silent(Turns):
        predicts = False

    with pytest.raises(TypeError, match="Silent: a method that predicts returns a Head from build"):
        DistillationModule("resnet8", make_teacher(), strategies=[Silent()], num_classes=10)


def test_changed_head_after_the_evaluation_is_refused() -> None:
    class Changes(pl.Callback):
        def on_validation_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
            with torch.no_grad():
                pl_module.adapters["turns"].scale += 1

    with pytest.raises(UserError, match=r"changed the student's adapters\.turns\.scale after its evaluation"):
        fitted(turned(make_teacher()), callbacks=[Changes()])


def test_fused_members_of_a_pack() -> None:
    """Nearly their solo runs; test_pack.py has every method of the package bit for bit, where nothing is fused."""
    teacher = make_teacher()

    def members() -> dict[str, DistillationModule]:
        methods: dict[str, LossStrategy] = {"turned": Turns(), "crossed": Crossed()}
        return {
            name: DistillationModule("resnet8", teacher, strategies=[method], num_classes=10, milestones=[1])
            for name, method in methods.items()
        }

    packed(Path("pack"), members(), {"fused": True}, epochs=1)
    for name, module in members().items():
        solo(Path("solo"), name, module, epochs=1)
        fused, alone = (load_student(Path(kind) / name / "checkpoints" / "last.ckpt") for kind in ("pack", "solo"))
        torch.testing.assert_close(fused(images()), alone(images()), rtol=0.02, atol=0.02)
