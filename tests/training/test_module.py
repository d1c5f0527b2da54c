"""The module: initial weights, checkpoints, and refused arguments."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
import yaml
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from ickd_pl import Batch, Digits, DistillationModule, LayerMap, LossStrategy, UserError, get_model, load_student
from ickd_pl.runs import configs
from ickd_pl.seeding import seeded
from ickd_pl.strategies import AB, CRD, FSP, FT, ICKD, KD, from_spec  # type: ignore[attr-defined]
from ickd_pl.training.two_stage import Stages


def batch(size: int = 6) -> Batch:
    generator = torch.Generator().manual_seed(1)
    return Batch(torch.randn(size, 3, 32, 32, generator=generator), torch.arange(size) % 10, torch.arange(size))


def trainer(tmp_path: Path, **kwargs: Any) -> pl.Trainer:
    return pl.Trainer(
        accelerator="cpu", default_root_dir=tmp_path, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
        **{"max_epochs": 1, "num_sanity_val_steps": 0, **kwargs},
    )  # fmt: skip


class Watch(pl.Callback):
    """Records the training batches."""

    def __init__(self) -> None:
        self.seen: list[Tensor] = []

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Batch, batch_idx: int) -> None:
        self.seen.append(torch.cat([batch.index.float(), batch.image.flatten()]))


def test_methods_of_one_seed_are_paired(tmp_path: Path) -> None:
    """Vanilla, KD and ICKD have the same initial student and batches, whatever was drawn from the global generator."""
    starts, batches = [], []
    for strategies in ([], [KD()], [ICKD(), KD()]):
        torch.rand(7)  # an unrelated draw
        module = DistillationModule("resnet8", get_model("resnet14", 10), strategies=strategies, num_classes=10, seed=3)
        starts.append(torch.cat([p.flatten() for p in module.student.parameters()]).clone())
        watch = Watch()
        data = Digits(train_size=40, batch_size=16, seed=3)
        trainer(tmp_path, callbacks=[watch], limit_val_batches=0).fit(module, data)
        batches.append(torch.cat(watch.seen))
    assert torch.equal(starts[0], starts[1]) and torch.equal(starts[0], starts[2])
    assert torch.equal(batches[0], batches[1]) and torch.equal(batches[0], batches[2])
    other = DistillationModule("resnet8", num_classes=10, seed=4)
    assert not torch.equal(starts[0], torch.cat([p.flatten() for p in other.student.parameters()]))


def test_adapter_start_depends_on_seed_method_and_position() -> None:
    def start(seed: int, *strategies: Any) -> Tensor:
        module = DistillationModule(
            "resnet8", get_model("resnet8", 10), strategies=list(strategies), num_classes=10, seed=seed
        )
        return module.adapters["ickd"].conv.weight.clone()  # type: ignore[union-attr, operator]

    assert torch.equal(start(0, ICKD()), start(0, ICKD()))
    assert not torch.equal(start(0, ICKD()), start(1, ICKD()))
    assert not torch.equal(start(0, ICKD()), start(0, KD(), ICKD()))


def test_total_is_the_weighted_sum() -> None:
    module = DistillationModule(
        "resnet8", get_model("resnet8x4", 10), strategies=[ICKD(2.5), KD(0.9)], ce_weight=0.1, num_classes=10
    )
    total, terms, logits = module.losses(batch())
    assert logits.shape == (6, 10)
    expected = 0.1 * terms["ce"] + 2.5 * terms["ickd"] + 0.9 * terms["kd"]
    torch.testing.assert_close(total, expected)


def test_one_method_used_twice_has_two_keys() -> None:
    module = DistillationModule("resnet8", get_model("resnet8", 10), strategies=[ICKD(), ICKD()], num_classes=10)
    assert module.keys == ["ickd", "ickd_2"]
    assert module.adapter_of(module.strategies[1]) is module.adapters["ickd_2"]


def test_no_method_means_no_teacher(tmp_path: Path) -> None:
    """Vanilla neither builds nor loads the teacher in the pair's file."""
    module = DistillationModule("resnet8", "resnet110", tmp_path / "not there.pth", num_classes=10)
    assert module.teacher is None
    module.prepare_teacher()
    module.losses(batch())


def test_teacher_without_weights_is_refused(tmp_path: Path) -> None:
    module = DistillationModule("resnet8", "resnet14", strategies=[KD()], num_classes=10)
    with pytest.raises(UserError, match=r"teacher resnet14 has no weights.*--model.student resnet14"):
        module.losses(batch())
    with pytest.raises(UserError, match="has no weights"):
        trainer(tmp_path).fit(module, Digits(train_size=20))


def test_the_teacher_does_not_change(tmp_path: Path) -> None:
    teacher = get_model("resnet8", 10)
    before = {key: value.clone() for key, value in teacher.state_dict().items()}
    module = DistillationModule("resnet8", teacher, strategies=[ICKD(), KD()], num_classes=10)
    trainer(tmp_path, max_epochs=2).fit(module, Digits(train_size=40, batch_size=16))
    assert not teacher.training and not any(p.requires_grad for p in teacher.parameters())
    assert all(torch.equal(value, before[key]) for key, value in teacher.state_dict().items())
    module.train()
    assert module.student.training and not teacher.training


def test_the_optimizer_has_the_recipe_for_student_and_adapters(tmp_path: Path) -> None:
    module = DistillationModule(
        "resnet8", get_model("resnet8", 10), strategies=[ICKD()], num_classes=10, milestones=[1, 2]
    )
    run = trainer(tmp_path, max_epochs=3, limit_train_batches=1, limit_val_batches=0)
    rates: list[float] = []

    class Rates(pl.Callback):
        def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
            rates.append(trainer.optimizers[0].param_groups[0]["lr"])

    run.callbacks.append(Rates())  # type: ignore[attr-defined]
    run.fit(module, Digits(train_size=20))
    assert rates == pytest.approx([0.05, 0.005, 0.0005])
    (group,) = run.optimizers[0].param_groups
    assert (group["momentum"], group["weight_decay"], group["nesterov"], group["dampening"]) == (0.9, 5e-4, False, 0)
    assert group["foreach"] is True
    trained = {id(p) for p in group["params"]}
    assert trained == {id(p) for p in (*module.student.parameters(), *module.adapters.parameters())}


def test_metrics_of_an_epoch(tmp_path: Path) -> None:
    """Loss terms and accuracies are means over images; the best epoch's accuracy is logged as well."""
    module = DistillationModule("resnet8", get_model("resnet8", 10), strategies=[KD()], num_classes=10)
    run = trainer(tmp_path, max_epochs=2)
    run.fit(module, Digits(train_size=40, batch_size=16))
    metrics = {key: float(value) for key, value in run.callback_metrics.items()}
    assert {"loss/total", "loss/ce", "loss/kd", "train/acc1", "test/acc1", "test/acc5", "test/acc1_best", "lr"} <= set(
        metrics
    )
    assert metrics["loss/total"] == pytest.approx(metrics["loss/ce"] + metrics["loss/kd"], rel=1e-5)
    assert metrics["test/acc1_best"] >= metrics["test/acc1"] and metrics["test/acc5"] >= metrics["test/acc1"]
    (result,) = trainer(tmp_path).test(module, Digits(train_size=40, batch_size=16), verbose=False)
    assert result["test/acc1"] == pytest.approx(metrics["test/acc1"])


def test_a_validation_split_is_logged_as_val(tmp_path: Path) -> None:
    run = trainer(tmp_path)
    run.fit(DistillationModule("resnet8", num_classes=10), Digits(val_size=100, train_size=40))
    assert "val/acc1" in run.callback_metrics and "test/acc1" not in run.callback_metrics


def test_few_classes_have_no_top5() -> None:
    assert set(DistillationModule("resnet8", num_classes=3).metrics.top) == {"acc1"}


def test_infinite_loss_stops_the_run(tmp_path: Path) -> None:
    module = DistillationModule("resnet8", get_model("resnet8", 10), strategies=[KD()], num_classes=10)
    module.strategies[0].weight = float("inf")  # the constructor would refuse it
    with pytest.raises(UserError, match=r"loss/total became infinite or NaN in step 0 \(epoch 1\)"):
        trainer(tmp_path).fit(module, Digits(train_size=40, batch_size=16))


@pytest.mark.parametrize("file", sorted(Path(configs.config_root() / "pairs").glob("*.yaml")), ids=lambda f: f.stem)
def test_learning_rate_of_the_paraphraser(file: Path) -> None:
    """RepDistiller's rule: 0.01 for resnet and wrn students, else that of the main stage; pretrain_lr comes first."""
    pair = yaml.safe_load(file.read_text())["model"]
    shipped = yaml.safe_load((configs.config_root() / "methods/ft.yaml").read_text())["model"]["strategies"][0]
    recipe = pair.get("lr", 0.05)
    slow = pair["student"] not in {"vgg8"}  # the mobile networks' recipe is 0.01 as well
    assert recipe == (0.01 if pair["student"] in {"MobileNetV2", "ShuffleV1", "ShuffleV2"} else 0.05)
    for strategy in (FT(), from_spec(shipped)):
        assert Stages([strategy], pair["student"]).lr(recipe) == (0.01 if slow else 0.05)
    assert Stages([FT(pretrain_lr=0.3)], pair["student"]).lr(recipe) == 0.3
    assert Stages([FSP()], pair["student"]).lr(recipe) == recipe
    assert Stages([FT()], "ResNet50").lr(0.05) == 0.05


def test_the_student_determines_the_paraphrasers_learning_rate() -> None:
    strategy = FT(pretrain_epochs=1)
    module = DistillationModule("resnet8", get_model("resnet8", 10), strategies=[strategy], num_classes=10)
    rates = [0.05 * module.lr_factor()(epoch) for epoch in (0, 1)]
    assert rates == pytest.approx([0.01, 0.05])


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"milestones": [3, 1]}, "rising order"),
        ({"milestones": [-1]}, "epochs from 1"),
        ({"student": "resnet9"}, "resnet8"),
        ({"strategies": [KD()]}, "needs a teacher"),
        ({"strategies": KD()}, "a list of methods"),
        ({"strategies": ["KD"]}, "a list of methods"),
    ],
)
def test_wrong_arguments(wrong: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        DistillationModule(**{"student": "resnet8", **wrong})


def test_class_counts_must_agree(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has 100 classes, the data 10"):
        DistillationModule("resnet8", get_model("resnet8", 100), strategies=[KD()], num_classes=10)
    with pytest.raises(UserError, match="num_classes mismatch: data 10, networks 100"):
        trainer(tmp_path).fit(DistillationModule("resnet8", num_classes=100), Digits(train_size=20))


class Own(nn.Module):
    """A custom network."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 8, 3, 2, 1)
        self.b = nn.Conv2d(8, 16, 3, 2, 1)
        self.fc = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc(self.b(self.a(x).relu()).relu().mean((2, 3)))
        return out


def test_custom_network_and_data_loader(tmp_path: Path) -> None:
    """Any module with a LayerMap and any loader of (image, label) work; their checkpoints can be loaded."""
    layers = LayerMap(stem="a", stages=("a", "b"), final="b", pooled="fc:in")
    teacher = get_model("resnet8", 10)
    module = DistillationModule(Own(), teacher, strategies=[ICKD(), KD()], num_classes=10, student_layers=layers)
    images, labels = torch.randn(20, 3, 32, 32), torch.arange(20) % 10
    loader = DataLoader(TensorDataset(images, labels), batch_size=8)
    run = trainer(tmp_path)
    run.fit(module, loader, loader)
    assert "val/acc1" in run.callback_metrics
    run.save_checkpoint(tmp_path / "own.ckpt", weights_only=False)
    again = DistillationModule.load_from_checkpoint(
        tmp_path / "own.ckpt", weights_only=True, student=Own(), teacher=teacher, student_layers=layers
    )
    assert torch.equal(again.eval()(images), module.eval()(images))


def test_built_in_networks_are_stored_by_name(tmp_path: Path) -> None:
    """Also if passed as objects: loading the checkpoint needs no further argument."""
    module = DistillationModule(get_model("resnet8", 10), get_model("resnet14", 10), strategies=[KD()], num_classes=10)
    run = trainer(tmp_path, limit_val_batches=0)
    run.fit(module, Digits(train_size=20))
    run.save_checkpoint(tmp_path / "named.ckpt", weights_only=False)
    again = DistillationModule.load_from_checkpoint(tmp_path / "named.ckpt", weights_only=True)
    assert torch.equal(again.eval()(batch().image), module.eval()(batch().image))
    assert (again.student_name, again.teacher_name) == ("resnet8", "resnet14")


def test_own_network_without_layers_is_refused() -> None:
    with pytest.raises(UserError, match=r"Own does not return features.*student_layers"):
        DistillationModule(Own(), num_classes=10)


def test_method_that_needs_indices_refuses_data_without(tmp_path: Path) -> None:
    module = DistillationModule("resnet8", get_model("resnet8", 10), strategies=[CRD()], num_classes=10, num_samples=20)
    loader = DataLoader(TensorDataset(torch.randn(20, 3, 32, 32), torch.arange(20) % 10), batch_size=8)
    with pytest.raises(UserError, match="CRD"):
        trainer(tmp_path, limit_val_batches=0).fit(module, loader)


def test_two_stages_in_one_fit(tmp_path: Path) -> None:
    """First-stage epochs come before max_epochs, with the same main batches as a one-stage run, and train only
    what the method names; the head stays as it started until the main stage."""
    seen = {}
    for name, strategies in (("one", [KD()]), ("two", [FSP(pretrain_epochs=2)])):
        module = DistillationModule("resnet8", get_model("resnet8", 10), strategies=strategies, num_classes=10)
        watch, head, rates = Watch(), module.student.fc.weight.clone(), []  # type: ignore[union-attr, operator]

        class Head(pl.Callback):
            def on_train_epoch_end(self, trainer: pl.Trainer, module: Any) -> None:
                rates.append((torch.equal(module.student.fc.weight, head), module.student.bn1.training))  # noqa: B023

        run = trainer(tmp_path, callbacks=[watch, Head()], limit_val_batches=0)
        run.fit(module, Digits(train_size=40, batch_size=16))
        seen[name] = watch.seen
        if name == "two":
            assert rates == [(True, True), (True, True), (False, True)]
            assert len(watch.seen) == 9
    assert all(torch.equal(a, b) for a, b in zip(seen["one"], seen["two"][6:], strict=True))
    assert not torch.equal(seen["two"][0], seen["two"][6])


@pytest.mark.parametrize(
    ("strategy", "step"),
    [
        (KD(), 2),
        (FSP(pretrain_epochs=1), 2),
        (FSP(pretrain_epochs=1), 3),  # the last step of the first stage: its momentum must be dropped
        (AB(pretrain_epochs=2), 6),
        (FT(pretrain_epochs=1), 3),
        (FSP(pretrain_epochs=1), 4),  # the first main step: its momentum must be restored
        (FSP(pretrain_epochs=1), 5),
        (FSP(pretrain_epochs=1), 6),
    ],
    ids=lambda value: value.name() if isinstance(value, LossStrategy) else str(value),
)
def test_resumes_after_any_step(strategy: LossStrategy, step: int, tmp_path: Path) -> None:
    """A run resumed from any step (an epoch has three) has the same batches and weights."""
    runs = []
    for resumed in (False, True):
        module = DistillationModule("resnet8", get_model("resnet8", 10), strategies=[strategy], num_classes=10)
        for seed, parameter in enumerate(module.teacher.parameters()):  # type: ignore[union-attr]
            parameter.data.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(seed)) / 20)
        file = tmp_path / "step.ckpt"
        run = trainer(tmp_path, limit_val_batches=0, max_epochs=2, callbacks=[] if resumed else [SaveAt(step, file)])
        run.fit(module, Digits(train_size=40, batch_size=16), ckpt_path=file if resumed else None)
        assert run.global_step == 3 * (2 + strategy.pretrain_epochs)
        runs.append(torch.cat([p.detach().flatten() for p in module.student.parameters()]))
    assert torch.equal(runs[0], runs[1])


def test_continues_after_a_fit_that_ended_with_the_first_stage(tmp_path: Path) -> None:
    """The main stage then starts without the first one's momentum, as in one fit."""
    runs = []
    for stops in (False, True):
        with seeded("teacher"):
            teacher = get_model("resnet8", 10)
        settings: dict[str, Any] = {"strategies": [FSP(pretrain_epochs=1)], "num_classes": 10}
        module, file = DistillationModule("resnet8", teacher, **settings), None
        if stops:
            first = trainer(tmp_path, limit_val_batches=0, max_epochs=2, callbacks=[StopAfterAnEpoch()])
            first.fit(module, Digits(train_size=40, batch_size=16))
            assert first.global_step == 3
            file = tmp_path / "first.ckpt"
            first.save_checkpoint(file, weights_only=False)
            module = DistillationModule("resnet8", teacher, **settings)
        run = trainer(tmp_path, limit_val_batches=0, max_epochs=2)
        run.fit(module, Digits(train_size=40, batch_size=16), ckpt_path=file)
        assert run.global_step == 9
        runs.append(torch.cat([p.detach().flatten() for p in module.student.parameters()]))
    assert torch.equal(runs[0], runs[1])


class StopAfterAnEpoch(pl.Callback):
    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        trainer.should_stop = True


def test_lightnings_trial_of_a_few_batches_counts_in_no_accuracy(tmp_path: Path) -> None:
    found = []
    for steps in (0, 2):
        module = DistillationModule("resnet8", num_classes=10)
        run = trainer(tmp_path, num_sanity_val_steps=steps, limit_train_batches=10)
        run.fit(module, Digits(batch_size=16))
        found.append((float(run.callback_metrics["test/acc1"]), module.best_acc1))
    assert found[0] == found[1]


class SaveAt(pl.Callback):
    """Writes a checkpoint within an epoch."""

    def __init__(self, step: int, file: Path) -> None:
        self.step, self.file = step, file

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.file, weights_only=False)


def test_a_student_is_loaded_without_its_teacher(tmp_path: Path) -> None:
    """Also for a custom teacher, which the checkpoint cannot name."""
    layers = LayerMap(stem="a", stages=("a", "b"), final="b", pooled="fc:in")
    module = DistillationModule("resnet8", Own(), strategies=[ICKD()], num_classes=10, teacher_layers=layers)
    run = trainer(tmp_path, limit_val_batches=0)
    run.fit(module, Digits(train_size=20))
    run.save_checkpoint(tmp_path / "own.ckpt", weights_only=False)
    assert torch.equal(load_student(tmp_path / "own.ckpt")(batch().image), module.eval()(batch().image))


def test_the_first_stage_logs_no_accuracy_of_the_student(tmp_path: Path) -> None:
    module = DistillationModule(
        "resnet8", get_model("resnet8", 10), strategies=[FSP(pretrain_epochs=1)], num_classes=10
    )
    run = trainer(tmp_path, max_epochs=1)
    run.fit(module, Digits(train_size=20))
    assert module.best_acc1 == pytest.approx(float(run.callback_metrics["test/acc1"]))
