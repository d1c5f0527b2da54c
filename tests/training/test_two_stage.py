"""What a two-stage method trains, freezes and resets: two epochs of each stage in one fit."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
import pytorch_lightning as pl
import torch

from ickd_pl import Digits, DistillationModule, LossStrategy, get_model
from ickd_pl.seeding import seeded
from ickd_pl.strategies import AB, FSP, FT

FEATURE_LAYERS = ("student.conv1.", "student.block1.", "student.block2.", "student.block3.")
OPTIONS: dict[str, Any] = {"pretrain_epochs": 2, "pretrain_lr": 0.02}


@dataclass(frozen=True)
class Case:
    """A method, its teacher, and the prefixes of what it trains in each stage."""

    strategy: LossStrategy
    teacher: str
    first: tuple[str, ...]
    main: tuple[str, ...]

    def trained(self, epoch: int) -> tuple[str, ...]:
        return self.first if epoch < 2 else self.main


CASES = {
    "fsp": Case(FSP(**OPTIONS), "wrn_16_1", FEATURE_LAYERS, ("student.",)),
    # A wider teacher, so that every stage has a connector.
    "ab": Case(AB(**OPTIONS), "wrn_16_2", (*FEATURE_LAYERS, "adapters.ab."), ("student.",)),
    "ft": Case(FT(**OPTIONS), "wrn_16_1", ("adapters.ft.paraphraser.",), ("student.", "adapters.ft.translator.")),
}


@dataclass
class Seen:
    """One epoch: the state at its first batch, and the tensors that have changed at its end."""

    lr: float
    remembers: bool
    training: dict[str, bool]
    thawed: dict[str, bool]
    changed: dict[str, bool] = field(default_factory=dict)


Watched = tuple[Case, list[Seen]]


class Watch(pl.Callback):
    """Records every epoch."""

    def __init__(self) -> None:
        self.epochs: list[Seen] = []
        self.before: dict[str, torch.Tensor] = {}

    def on_train_batch_start(self, trainer: pl.Trainer, module: pl.LightningModule, _: Any, number: int) -> None:
        if number == 0:
            optimizer = trainer.optimizers[0]
            self.before = tensors(module)
            self.epochs.append(
                Seen(
                    lr=optimizer.param_groups[0]["lr"],
                    remembers=len(optimizer.state) > 0,
                    training={f"{name}.": m.training for name, m in named_layers(module).items()},
                    thawed={name: p.requires_grad for name, p in module.named_parameters()},
                )
            )

    def on_train_epoch_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        after = tensors(module)
        self.epochs[-1].changed = {name: not torch.equal(old, after[name]) for name, old in self.before.items()}


def named_layers(module: pl.LightningModule) -> dict[str, torch.nn.Module]:
    """The layers of student, teacher and adapters that contain no others."""
    parts = ("student.", "teacher.", "adapters.")
    return {name: m for name, m in module.named_modules() if name.startswith(parts) and not list(m.children())}


def tensors(module: pl.LightningModule) -> dict[str, torch.Tensor]:
    """Copies of the layers' parameters and buffers."""
    return {
        f"{layer}.{name}": value.clone()
        for layer, m in named_layers(module).items()
        for name, value in m.state_dict().items()
    }


@pytest.fixture(scope="module", params=CASES)
def watched(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Watched:
    """A method's fit: two steps in each of four epochs."""
    case, folder = CASES[request.param], tmp_path_factory.mktemp(request.param)
    with seeded("two-stage teacher"):
        teacher = get_model(case.teacher, 10)
    module = DistillationModule(
        "wrn_16_1", teacher, strategies=[case.strategy], num_classes=10, lr=0.04, milestones=[1]
    )
    watch = Watch()
    run = pl.Trainer(
        max_epochs=2, accelerator="cpu", default_root_dir=folder, limit_val_batches=0, callbacks=[watch], logger=False,
        enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False,
    )  # fmt: skip
    run.fit(module, Digits(batch_size=10, train_size=20))
    assert run.global_step == 8 and len(watch.epochs) == 4
    return case, watch.epochs


def by_prefix(names: dict[str, bool], prefixes: tuple[str, ...]) -> dict[str, bool]:
    """Whether each name has one of the prefixes; every prefix must occur."""
    assert all(any(name.startswith(prefix) for name in names) for prefix in prefixes)
    return {name: name.startswith(prefixes) for name in names}


def test_only_trained_tensors_change(watched: Watched) -> None:
    """Weights and running statistics of the trained parts, and nothing else."""
    case, epochs = watched
    for number, seen in enumerate(epochs):
        assert seen.changed == by_prefix(seen.changed, case.trained(number)), f"epoch {number}"


def test_training_mode_and_gradients(watched: Watched) -> None:
    case, epochs = watched
    for number, seen in enumerate(epochs):
        assert seen.training == by_prefix(seen.training, case.trained(number)), f"epoch {number}"
        assert seen.thawed == by_prefix(seen.thawed, case.trained(number)), f"epoch {number}"


def test_learning_rates(watched: Watched) -> None:
    """The method's in the first stage, then the recipe's, whose milestones count main epochs."""
    assert [seen.lr for seen in watched[1]] == pytest.approx([0.02, 0.02, 0.04, 0.004])


def test_main_stage_starts_without_momentum(watched: Watched) -> None:
    assert [seen.remembers for seen in watched[1]] == [False, True, False, True]


@pytest.mark.parametrize("method", [FSP, AB])
def test_first_stage_uses_the_recipes_learning_rate(method: type[Any]) -> None:
    module = DistillationModule(
        "wrn_16_1", get_model("wrn_16_1", 10), strategies=[method(pretrain_epochs=2)], num_classes=10, lr=0.04
    )
    assert [module.lr_factor()(epoch) for epoch in range(4)] == [1, 1, 1, 1]
