"""Nothing infinite or NaN is used for an update or saved, and the message names the term, the step and the rank.

Row 10 of docs/reliability.md.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from ickd_pl.errors import NonFiniteLoss
from ickd_pl.runs import EpochRecord, FiniteGuard, RunFolder, SignalStop, StepCheckpoint
from ickd_pl.runs.pack_folder import PackRecord, newest_pack, previous_of
from ickd_pl.training.finite import not_finite_in
from ickd_pl.training.pack import Pack
from tests.runs.faults import Poison
from tests.runs.helpers import Forked, Run, assert_same_run, cli, fit_args, load, snapshot
from tests.runs.host_waits import HostWaits
from tests.runs.moments import EVERY_STEP, TWO, as_torchrun, ended, fit, folder, teacher_of
from tests.training.packs import data, make_teacher, member

NAN, INF = float("nan"), float("inf")


def trainer(record: pl.Callback, *more: pl.Callback, minutes: float = 1e-6) -> pl.Trainer:
    return pl.Trainer(
        max_epochs=2, logger=False, callbacks=[*more, record, FiniteGuard(), SignalStop(), StepCheckpoint(minutes)],
        enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0, accelerator="cpu",
        use_distributed_sampler=False,
    )  # fmt: skip


def train(root: str, *more: pl.Callback, taught: nn.Module, minutes: float = 1e-6, again: bool = False) -> None:
    """Two epochs of three steps in ``root``."""
    record = EpochRecord(RunFolder(Path(root)), {})
    kept = record.folder.last if again and record.folder.last.exists() else None
    run = trainer(record, *more, minutes=minutes)
    run.fit(member(["kd"], taught), data(), ckpt_path=kept, weights_only=True)


@pytest.fixture(scope="module")
def taught() -> nn.Module:
    torch.manual_seed(0)
    return make_teacher()


@pytest.fixture(scope="module")
def whole(taught: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("finite")
    train(str(root), taught=taught)
    return root


# -- one process -----------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("part", "step", "value"),
    [
        *(("term", 0, NAN), ("gradient", 1, INF), ("weight", 2, NAN), ("momentum", 3, INF), ("gradient", 5, NAN)),
        *(
            pytest.param(part, step, value, marks=pytest.mark.reliability)
            for part in ("term", "gradient", "weight", "momentum")
            for step, value in ((0, INF), (1, NAN), (2, INF), (3, NAN), (5, INF))
        ),
    ],
)
def test_the_run_stops_and_continues_from_before(
    taught: nn.Module, whole: Path, part: str, step: int, value: float
) -> None:
    """In the first, a middle and the last step of an epoch and of the run; without the fault, it ends as if there had
    been none.
    """
    first = "student.conv1.weight"
    epoch, said = step // 3 + 1, {
        "term": f"loss/kd became infinite or NaN in step {step} ",
        "gradient": f"the gradient became infinite or NaN in step {step} ",
        "weight": f"{first} became infinite or NaN by step {step + 1} ",
        "momentum": f"momentum_buffer of {first} became infinite or NaN by step {step + 1} ",
    }[part]  # fmt: skip
    with pytest.raises(NonFiniteLoss) as caught:
        train("out", Poison(part, step, value), taught=taught)
    assert str(caught.value).startswith(f"{said}(epoch {epoch})")
    assert caught.value.exit_status == 3
    last = Path("out/checkpoints/last.ckpt")
    assert last.exists() is (step > 0)
    # After the last step of an epoch only the epoch's own checkpoint is written.
    if step:
        content = load(last)
        assert content["global_step"] == step and not_finite_in(content) is None
    assert not Path("out/finished").exists()
    train("out", taught=taught, again=True)
    assert_same_run(whole, Path("out"))


@pytest.mark.filterwarnings("ignore")
def test_no_update_is_made_with_it(taught: nn.Module) -> None:
    """The weights in memory are those before the step."""
    module = member(["kd"], taught)
    seen: dict[int, Tensor] = {}

    class Look(pl.Callback):
        def on_train_batch_start(self, trainer: pl.Trainer, *args: Any) -> None:
            seen[trainer.global_step] = next(module.trainable()).detach().clone()

    with pytest.raises(NonFiniteLoss):
        trainer(EpochRecord(RunFolder(Path("out"))), Look(), Poison("term", 4)).fit(module, data())
    assert torch.equal(next(module.trainable()), seen[4])
    assert max(seen) == 4


@pytest.mark.filterwarnings("ignore")
def test_without_step_checkpoints_the_epochs_own_is_kept(taught: nn.Module) -> None:
    with pytest.raises(NonFiniteLoss):
        train("out", Poison("weight", 4), taught=taught, minutes=0)
    assert load(Path("out/checkpoints/last.ckpt"))["global_step"] == 3


def test_a_last_checkpoint_with_nan_is_not_continued(student: Run) -> None:
    """The run goes on from the one before with a warning, and ends as an undamaged one; with none, it is refused."""
    import shutil

    path = Path("out").resolve() / student.path.relative_to(student.root)
    shutil.copytree(student.path, path)
    last, previous = path / "checkpoints" / "last.ckpt", path / "checkpoints" / "previous.ckpt"
    for file in (last,):
        content = load(file)
        content["state_dict"]["student.conv1.weight"][0] = NAN
        torch.save(content, file)
    outcome = cli(*fit_args(Path("out").resolve(), student.args, epochs=3))
    assert outcome.status == 0, outcome.err
    assert (
        f"warning: {last} has an infinite or NaN value in state_dict.student.conv1.weight; continuing from"
        in outcome.err
    )
    assert_same_run(student.path, path)
    for file in (last, previous):
        content = load(file)
        content["optimizer_states"][0]["state"][0]["momentum_buffer"][0] = INF
        torch.save(content, file)
    before = snapshot(path)
    refused = cli(*fit_args(Path("out").resolve(), student.args, epochs=3))
    assert refused.status == 2 and "has an infinite or NaN value in optimizer_states" in refused.err
    assert snapshot(path) == before


def test_a_gradient_scaler_is_left_to_itself(taught: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    """16-mixed: its infinite gradients on the way to a scale are skipped by the scaler and stop nothing."""
    module = member(["kd"], taught)
    scaled: Any = SimpleNamespace(precision_plugin=SimpleNamespace(scaler=object()), global_step=0, world_size=1)
    plain: Any = SimpleNamespace(precision_plugin=SimpleNamespace(), global_step=0, world_size=1, current_epoch=0)
    for parameter in module.trainable():
        parameter.grad = torch.full_like(parameter, INF)
    monkeypatch.setattr(type(module), "trainer", scaled)
    monkeypatch.setattr(type(module), "global_step", 0)
    module.on_before_optimizer_step(None)
    assert module.sums.finite.bad() is None
    foreign: Any = nn.Linear(1, 1)
    foreign.weight.grad = torch.full_like(foreign.weight, INF)
    optimizer = torch.optim.SGD(foreign.parameters(), 0.1)
    guard = FiniteGuard()
    guard.on_train_start(scaled, foreign)
    guard.on_before_optimizer_step(scaled, foreign, optimizer)
    guard.on_train_start(plain, foreign)
    with pytest.raises(NonFiniteLoss, match="the gradient became infinite or NaN in step 0"):
        guard.on_before_optimizer_step(plain, foreign, optimizer)
    monkeypatch.setattr(type(module), "trainer", plain)
    with pytest.raises(NonFiniteLoss, match="the gradient became infinite or NaN in step 0"):
        module.on_before_optimizer_step(None)


# -- packs -----------------------------------------------------------------------------------------------------------


def pack_of(taught: nn.Module, names: list[str]) -> Pack:
    return Pack([member([] if name == "vanilla" else [name], taught) for name in names], names)


def train_pack(root: str, pack: Pack, *more: pl.Callback, kept: Path | None = None) -> None:
    folders = [RunFolder(Path(root) / name) for name in pack.names]
    record = PackRecord(Path(root) / "pack.ckpt", folders, [{} for _ in folders])
    trainer(record, *more).fit(pack, datamodule=data(), ckpt_path=kept, weights_only=True)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("part", "step", "said"),
    [
        ("weight", 3, "student.conv1.weight became infinite or NaN by step 4 (epoch 2)"),
        *(
            pytest.param(*each, marks=pytest.mark.reliability)
            for each in (
                ("gradient", 1, "the gradient became infinite or NaN in step 1 (epoch 1)"),
                ("term", 5, "loss/kd became infinite or NaN in step 5 (epoch 2)"),
            )
        ),
    ],
)
def test_one_member_of_a_pack(taught: nn.Module, part: str, step: int, said: str) -> None:
    """It is stopped, and the others are bit-equal to their pack without it."""
    pack = pack_of(taught, ["kd", "vanilla", "sp"])
    train_pack("with", pack, Poison(part, step))
    assert list(pack.stopped) == ["kd"] and said in pack.stopped["kd"]
    assert not Path("with/kd/finished").exists() and not Path("with/kd/checkpoints/last.ckpt").exists()
    train_pack("without", pack_of(taught, ["vanilla", "sp"]))
    for name in ("vanilla", "sp"):
        assert_same_run(Path("with") / name, Path("without") / name)


@pytest.mark.filterwarnings("ignore")
def test_a_pack_with_a_stopped_member_continues(taught: nn.Module) -> None:
    """After a break the member stays stopped; a file with NaN is removed, and the one before is used."""

    class Break(pl.Callback):
        def on_train_batch_end(self, trainer: pl.Trainer, *args: Any) -> None:
            if trainer.global_step == 5:
                raise RuntimeError("break")

    pack = pack_of(taught, ["kd", "vanilla", "sp"])
    with pytest.raises(RuntimeError, match="break"):
        train_pack("with", pack, Poison("gradient", 1), Break())
    path = Path("with/pack.ckpt")
    content = load(path)
    content["state_dict"]["members.1.student.conv1.weight"][0] = NAN
    torch.save(content, path)
    kept = newest_pack(path)
    assert kept is not None and kept.path == previous_of(path) and list(kept.stopped) == ["kd"]
    assert not path.exists()
    train_pack("with", pack_of(taught, ["kd", "vanilla", "sp"]), kept=kept.path)
    train_pack("without", pack_of(taught, ["vanilla", "sp"]))
    for name in ("vanilla", "sp"):
        assert_same_run(Path("with") / name, Path("without") / name)


# -- two ranks -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "part",
    ["term", *(pytest.param(part, marks=pytest.mark.reliability) for part in ("gradient", "weight", "momentum"))],
)
def test_only_the_second_rank_has_it(forked: Forked, part: str) -> None:
    """Both ranks stop with status 3; the message names the rank, is printed once, and the checkpoint is sound."""
    poison = ["--trainer.callbacks+=tests.runs.faults.Poison", f"--trainer.callbacks.part={part}"]
    poison += ["--trainer.callbacks.step=4", "--trainer.callbacks.rank=1"]
    student = [*teacher_of(forked), "--model.strategies+=KD"]
    command = fit("out", *student, *TWO, *EVERY_STEP, *poison)
    ranks = ended(as_torchrun(forked, *command))
    assert [each.status for each in ranks] == [3, 3], [each.err for each in ranks]
    lines = [
        (rank, line) for rank, each in enumerate(ranks) for line in each.err.splitlines() if "became infinite" in line
    ]
    (rank, line) = lines[0]
    assert len(lines) == 1, lines
    if part == "gradient":  # DDP's average is on all ranks
        assert "error: the gradient became infinite or NaN in step 4 (epoch 2) on rank 0" in line
    else:
        what = {"term": "loss/kd", "weight": "student.conv1.weight", "momentum": "momentum_buffer of student.conv1"}[
            part
        ]
        assert rank == 1 and line.startswith(f"error: {what}") and "step 4" in line.replace("by step 5", "step 4")
    content = load(folder("out") / "checkpoints" / "last.ckpt")
    assert content["global_step"] == 4 and not_finite_in(content) is None
    assert [each.status for each in ended(as_torchrun(forked, *command, NO_FAULTS="1"))] == [0, 0]


def test_the_command_line_has_status_3(forked: Forked) -> None:
    poison = ["--trainer.callbacks+=tests.runs.faults.Poison", "--trainer.callbacks.part=gradient"]
    outcome = forked.run(*fit("out", "--model.student=resnet8", *poison, "--trainer.callbacks.step=5"))
    assert outcome.status == 3
    (line,) = (line for line in outcome.err.splitlines() if line.startswith("error: "))
    assert line.startswith("error: the gradient became infinite or NaN in step 5 (epoch 2); no update was made with it")
    assert "Traceback" not in outcome.err


# -- any Trainer -----------------------------------------------------------------------------------------------------


class Foreign(pl.LightningModule):
    """A module of another project."""

    def __init__(self, bad_loss: float = 1.0) -> None:
        super().__init__()
        self.net = nn.Linear(4, 2)
        self.bad_loss = bad_loss

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss: Tensor = self.net(batch[0]).square().mean()
        return loss * self.bad_loss if self.global_step == 3 else loss

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), 0.01, momentum=0.9)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("loss", "more", "said"),
    [
        (NAN, [], "the loss became infinite or NaN in step 3"),
        (INF, [], "the loss became infinite or NaN in step 3"),
        (1.0, [Poison("gradient", 3)], "the gradient became infinite or NaN in step 3"),
        (1.0, [Poison("weight", 2)], "net.weight became infinite or NaN by step 3"),
        (1.0, [Poison("momentum", 2, INF)], "momentum_buffer of net.weight became infinite or NaN by step 3"),
    ],
    ids=["NaN", "infinite", "gradient", "weight", "optimizer"],
)
def test_any_trainer(loss: float, more: list[pl.Callback], said: str) -> None:
    """The three callbacks alone, in another project's module."""
    guards = [FiniteGuard(), SignalStop(), StepCheckpoint(1e-6, "last.ckpt")]
    run = pl.Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        callbacks=[*more, *guards],
    )  # fmt: skip
    loader: DataLoader[Any] = DataLoader(TensorDataset(torch.randn(20, 4)), batch_size=4)
    module = Foreign(loss)
    with pytest.raises(NonFiniteLoss) as caught:
        run.fit(module, loader)
    assert str(caught.value).startswith(said)
    content = load(Path("last.ckpt"))
    assert content["global_step"] == (2 if "weight" in said else 3) and not_finite_in(content) is None


@pytest.mark.filterwarnings("ignore")
def test_the_guards_change_no_result(taught: nn.Module, whole: Path) -> None:
    record = EpochRecord(RunFolder(Path("out")), {})
    pl.Trainer(
        max_epochs=2, logger=False, callbacks=[record], enable_progress_bar=False, enable_model_summary=False,
        num_sanity_val_steps=0, accelerator="cpu", use_distributed_sampler=False,
    ).fit(member(["kd"], taught), data())  # fmt: skip
    assert_same_run(whole, Path("out"))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["distillation", "foreign"])
def test_no_step_waits_for_the_device(taught: nn.Module, kind: str) -> None:
    """Every read of a tensor's value by the host is counted, from the loss to the callbacks after the step."""
    waits = HostWaits()
    guards = [FiniteGuard(), SignalStop(), StepCheckpoint(5, "x.ckpt")]
    run = pl.Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        callbacks=[waits, *guards], num_sanity_val_steps=0, use_distributed_sampler=False, limit_val_batches=0,
    )  # fmt: skip
    if kind == "foreign":
        run.fit(Foreign(), DataLoader(TensorDataset(torch.randn(20, 4)), batch_size=4))
    else:
        run.fit(member(["kd"], taught), data())
    assert waits.steps >= 1
    assert waits.found == []


def test_host_waits_are_counted() -> None:
    """The count itself can fail."""
    waits = HostWaits()
    with waits.counting():
        x = torch.ones(3)
        float(x.sum()), bool(x.sum() > 0), x.nonzero(), x.sum().item(), x.tolist(), x[x > 0]
        x[x > 0] = 1.0
        torch.tensor(1.0), x[torch.tensor(1)]
    assert len(waits.found) >= 9


def test_minus_infinity_is_accepted_in_constants_only() -> None:
    state = {"mask": torch.tensor([0.0, -torch.inf])}
    assert not_finite_in(state) == "mask" and not_finite_in(state, constants=True) is None
    assert not_finite_in({"bias": [torch.ones(2), torch.tensor(torch.nan)]}, constants=True) == "bias.1"
