"""Captured steps are the plain loop's, bit for bit: recorded operations on a CPU stand in for CUDA graphs."""

from __future__ import annotations

import logging
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from ickd_pl import Batch, DistillationModule, Features, UserError
from ickd_pl.runs import EpochRecord, RunFolder
from ickd_pl.strategies import FT, KD  # type: ignore[attr-defined]
from ickd_pl.training import captured, finite
from ickd_pl.training.pack import Pack
from tests.training import tape
from tests.training.packs import assert_solo, data, make_teacher, member, packed, trainer


@pytest.fixture
def tapes(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tape.TapeGraphs]]:
    """The recorders of the fits with cuda_graphs; a step needs no values of tensors, as on a GPU."""
    monkeypatch.setitem(captured.GRAPHS, "cpu", tape.TapeGraphs)
    monkeypatch.setattr(finite, "on_cpu", lambda values: False)
    monkeypatch.setattr(captured, "WARMUP", 1)
    tape.ALL.clear()
    yield tape.ALL
    tape.ALL.clear()


def run(root: str, name: str, module: DistillationModule, *callbacks: Any, **settings: Any) -> pl.Trainer:
    fit = trainer(EpochRecord(RunFolder(Path(root) / name), {}), **{"limit_val_batches": 1, **settings})
    fit.callbacks.extend(callbacks)  # type: ignore[attr-defined]
    fit.fit(module, data(14))
    return fit


def without_option(root: str, name: str) -> None:
    """Checkpoints differ in the setting itself and in Lightning's count of cleared gradients."""
    path = Path(root, name, "checkpoints", "last.ckpt")
    content = torch.load(path, weights_only=True)
    content["hyper_parameters"].pop("cuda_graphs")
    torch.save(content, path)


def assert_same(one: str, other: str, name: str) -> None:
    for root in (one, other):
        without_option(root, name)
    assert_solo(Path(one, name), Path(other, name))


def counts(done: list[str]) -> dict[str, int]:
    return {what: done.count(what) for what in ("eager", "record", "replay")}


class Keeps(pl.Callback):
    """Keeps what every step gave."""

    def __init__(self) -> None:
        self.losses: list[Any] = []

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.losses.append(outputs["loss"])


def test_captured_by_default_and_with_outputs_that_can_be_kept(tapes: list[tape.TapeGraphs]) -> None:
    taught, kept = make_teacher(), [Keeps(), Keeps()]
    for callback, settings in zip(kept, ({}, {"cuda_graphs": False}), strict=True):
        run("x", str(settings), member(["kd"], taught, **settings), callback, epochs=2)
    assert len(tapes) == 1 and counts(tapes[0].done)["replay"] > 0
    assert [float(loss) for loss in kept[0].losses] == [float(loss) for loss in kept[1].losses]


def test_a_solo_run(tapes: list[tape.TapeGraphs]) -> None:
    """Six steps an epoch, the last of another size; the rate falls in the third epoch; metrics, momentum, schedule."""
    taught = make_teacher()
    for root in ("plain", "captured"):
        module = member(["ickd", "crd"], taught, cuda_graphs=root == "captured", milestones=[2])
        fit = run(root, "x", module, epochs=4)
        assert fit.global_step == 24
    assert_same("captured", "plain", "x")
    assert tapes[0].most == 2  # student and teacher
    # Of each shape: before and after the rate falls.
    assert counts(tapes[0].done) == {"eager": 4, "record": 4, "replay": 16}
    assert tapes[0].done[:8] == ["eager", "record", "replay", "replay", "replay", "eager", "replay", "replay"]


def test_the_epoch_and_another_prediction(tapes: list[tape.TapeGraphs]) -> None:
    """The epoch that CTKD reads is on the device: nothing is recorded again for it."""
    taught = make_teacher()
    for root in ("plain", "captured"):
        run(root, "x", member(["simkd", "ctkd"], taught, cuda_graphs=root == "captured", milestones=[9]), epochs=3)
    assert_same("captured", "plain", "x")
    assert counts(tapes[0].done) == {"eager": 2, "record": 2, "replay": 14}


def test_a_pack(tapes: list[tape.TapeGraphs]) -> None:
    """Members, fused too; one that fails is recorded no longer."""
    taught = make_teacher()
    for root, options in (("plain", {}), ("captured", {}), ("fused", {"fused": True}), ("both", {"fused": True})):
        on = root in ("captured", "both")
        made = {name: member([name], taught, cuda_graphs=on) for name in ("kd", "ickd", "at")}
        pack = packed(Path(root), made, {**options, "gradient_clip_val": 0.5}, limit_val_batches=1)
        assert pack.global_step == 6 and pack.captured is None
    for name in ("kd", "ickd", "at"):
        assert_same("captured", "plain", name)
        assert_same("both", "fused", name)
    assert [each.most for each in tapes] == [4, 3]  # students, or fused ones, and teacher; gradients of three members
    # Two steps of one shape an epoch; the rate falls after the first.
    assert [counts(each.done) for each in tapes] == [{"eager": 4, "record": 2, "replay": 0}] * 2
    with pytest.raises(UserError, match="the members of a pack compute alike: cuda_graphs is False, but True for b"):
        Pack([member(["kd"], taught, cuda_graphs=False), member(["kd"], taught)], ["a", "b"])


class Warming(KD):
    """Its weight grows with the epochs."""

    def weight_at(self, epoch: int | None) -> float:
        return self.weight * (epoch or 1)


class Explodes(pl.Callback):
    """Makes the weights so large that the loss is not finite from step 4 on."""

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == 4:
            with torch.no_grad():
                pl_module.student.fc.weight.fill_(float("inf"))


def test_what_changes_a_step_is_recorded_again(tapes: list[tape.TapeGraphs]) -> None:
    """A weight that warms up, and the stages of a method with two."""
    taught = make_teacher()
    ft = lambda: FT(pretrain_epochs=1)  # noqa: E731
    for name, strategy, epochs in (("warming", Warming, 2), ("ft", ft, 1)):
        for root in ("plain", "captured"):
            on = root == "captured"
            module = DistillationModule(
                "resnet8", taught, strategies=[strategy()], num_classes=10, milestones=[5], cuda_graphs=on
            )
            run(root, name, module, epochs=epochs)
        assert_same("captured", "plain", name)
    assert [counts(each.done) for each in tapes] == [{"eager": 4, "record": 2, "replay": 6}] * 2


def test_a_bad_step_is_named_by_its_number(tapes: list[tape.TapeGraphs]) -> None:
    """The flags are set by replayed operations; the number lies on the device."""
    module = member(["kd"], make_teacher(), cuda_graphs=True)
    with pytest.raises(UserError, match=r"loss/ce, loss/kd became infinite or NaN in step 4 \(epoch 1\)"):
        run("x", "x", module, Explodes(), epochs=1)
    assert counts(tapes[0].done) == {"eager": 2, "record": 1, "replay": 3}


class Looks(KD):
    """Waits for the device."""

    def loss(self, student: Features, teacher: Features, batch: Batch, adapter: nn.Module | None) -> Tensor:
        loss = super().loss(student, teacher, batch, adapter)
        return loss * (2.0 if float(loss) > 1e9 else 1.0)


class Draws(KD):
    """Draws on the host."""

    def loss(self, student: Features, teacher: Features, batch: Batch, adapter: nn.Module | None) -> Tensor:
        return super().loss(student, teacher, batch, adapter) * random.random()


@pytest.mark.parametrize(
    ("method", "why", "eager"),
    [(Looks, "operation not permitted", 6), (Draws, "it draws random numbers on the host", 5)],
)
def test_a_step_that_cannot_be_recorded_runs_eagerly(
    tapes: list[tape.TapeGraphs], method: type[KD], why: str, eager: int
) -> None:
    taught = make_teacher()
    for root in ("plain", "captured"):
        random.seed(0)
        own = DistillationModule("resnet8", taught, strategies=[method()], num_classes=10, cuda_graphs=root != "plain")
        if root == "plain":
            run(root, "x", own, epochs=1)
            continue
        with pytest.warns(UserWarning, match=f"a step cannot be captured, so all run eagerly: {why}"):
            run(root, "x", own, epochs=1)
    assert_same("captured", "plain", "x")
    assert counts(tapes[0].done) == {"eager": eager, "record": 1, "replay": 0}


class Counting(nn.Module):
    """A trained part that counts its calls in Python."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.calls = 0


class Counts(KD):
    """Its loss grows with the number of calls."""

    def build(self, *args: Any) -> nn.Module:
        return Counting()

    def loss(self, student: Features, teacher: Features, batch: Batch, adapter: nn.Module | None) -> Tensor:
        assert isinstance(adapter, Counting)
        adapter.calls += 1
        return super().loss(student, teacher, batch, None) * adapter.calls * adapter.scale


def test_what_a_method_counts_in_python_is_not_replayed(tapes: list[tape.TapeGraphs]) -> None:
    taught = make_teacher()
    for root in ("plain", "captured"):
        on = root == "captured"
        own = DistillationModule("resnet8", taught, strategies=[Counts()], num_classes=10, cuda_graphs=on)
        run(root, "x", own, epochs=1)
    assert_same("captured", "plain", "x")
    assert counts(tapes[0].done) == {"eager": 6, "record": 0, "replay": 0}


class Between(pl.Callback):
    def on_after_backward(self, trainer: pl.Trainer, pl_module: Any) -> None:
        pass


@pytest.mark.parametrize(
    ("methods", "callbacks", "says"),
    [(["kdsvd"], [], "KDSVD cannot be captured"), (["kd"], [Between()], "Between has the hook on_after_backward")],
)
def test_what_is_not_captured(
    tapes: Any, caplog: pytest.LogCaptureFixture, methods: list[str], callbacks: list[Any], says: str
) -> None:
    module = member(methods, make_teacher(), cuda_graphs=True)
    with caplog.at_level(logging.INFO):
        run("x", "x", module, *callbacks, epochs=1, limit_train_batches=2)
    assert f"steps are not captured, but run eagerly, because {says}" in caplog.text
    assert not tapes


def test_on_a_cpu_nothing_is_captured() -> None:
    taught = make_teacher()
    for root in ("plain", "captured"):
        module = member(["kd"], taught, cuda_graphs=root == "captured")
        run(root, "x", module, epochs=1, limit_train_batches=2)
        assert module.captured is None
    assert_same("captured", "plain", "x")


def test_few_shapes_are_recorded() -> None:
    """Others run eagerly, and so does a batch that is not all tensors."""
    graphs = tape.TapeGraphs(torch.device("cpu"))
    runner = captured.StepRunner(graphs, torch.device("cpu"))
    total = torch.zeros(())

    def step(raw: Any) -> Tensor:
        batch = raw if runner.batch is None else runner.batch
        return total.add_(batch[0].sum()).clone()

    expected = 0.0
    for size in [3] * 5 + [4] * 5 + [5] * 5 + [3, 4]:
        values = torch.rand(size)
        expected += float(values.sum())
        found = runner.run([values], 0, "key", lambda values=values: step([values]))
        assert float(found) == pytest.approx(expected)
    assert counts(graphs.done) == {"eager": 3 + 3 + 5, "record": 2, "replay": 1 + 1 + 2}
    runner.run(["no tensor"], 0, "key", lambda: None)
    assert graphs.done[-1] == "eager"
    runner.run([torch.rand(3)], 7, "other", lambda: None)
    assert graphs.done[-1] == "eager" and int(runner.number) == 7
