"""A run that is killed at any moment continues to the same weights, optimizer, schedule and metrics, bit for bit.

Row 1 of docs/reliability.md: SIGKILL of real processes, and any Trainer with StepCheckpoint alone.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from ickd_pl.errors import UserError
from ickd_pl.runs import StepCheckpoint
from ickd_pl.runs.step import random_state, set_random_state
from tests.benchmark.helpers import quick
from tests.runs.helpers import QUIET, Forked, assert_equal, assert_same_run, load, made_once
from tests.runs.moments import (
    EVERY_STEP,
    MOMENTS,
    SAVES,
    TWO,
    VANILLA,
    as_torchrun,
    ended,
    fit,
    folder,
    killing,
    random_moment,
    sending,
    stopped_and_continued,
    teacher_of,
    whole_of_two_ranks,
    whole_run,
)
from tests.runs.nets import LAYERS

OWN = ["--model.student=tests.runs.nets.Noisy", "--model.student.width=6", f"--model.student_layers={LAYERS}"]
OWN += EVERY_STEP
# Both stages of FSP, and CRD's memory and draws.
STACKED = ["--model.strategies+=FSP", "--model.strategies.pretrain_epochs=1", "--model.strategies+=CRD", *EVERY_STEP]
KINDS: dict[str, list[str]] = {
    "own": OWN,
    "vanilla": [*VANILLA, *EVERY_STEP],
    "accumulation": [*OWN, "--trainer.accumulate_grad_batches=2"],
    "crd": ["TEACHER", "--config=configs/methods/crd.yaml", *EVERY_STEP],
    "fsp": ["TEACHER", "--config=configs/methods/fsp.yaml", "--model.strategies.pretrain_epochs=1", *EVERY_STEP],
    "stacked": ["TEACHER", *STACKED],
}


@pytest.fixture(scope="session")
def wholes(forked: Forked, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, list[str]]]:
    """The folder of an uninterrupted run of a kind, and its arguments."""

    def teach(root: Path) -> None:
        os.chdir(root)
        teacher_of(forked)

    def whole(kind: str) -> tuple[Path, list[str]]:
        here = Path.cwd()
        args = KINDS[kind]
        if "TEACHER" in args:
            root = made_once(tmp_path_factory, "step_teacher", teach)
            weights = folder(root) / "checkpoints" / "last.ckpt"
            pair = ["--model.student=resnet8", "--model.teacher=resnet14", f"--model.teacher_weights={weights}"]
            args = [*pair, *args[1:]]

        def make(root: Path) -> None:
            os.chdir(root)
            whole_run(forked, "out", args)

        made = made_once(tmp_path_factory, f"step_{kind}", make)
        os.chdir(here)
        return folder(made), args

    return whole


@pytest.mark.parametrize(
    ("kind", "when"),
    [
        ("own", "on_train_batch_end:1"),
        ("own", "save:9"),
        ("own", "on_validation_batch_end:5"),
        ("stacked", "on_train_batch_end:1"),
        pytest.param("stacked", "on_train_batch_end:7", marks=pytest.mark.reliability),
    ],
)
def test_killed_and_continued(forked: Forked, wholes: Any, kind: str, when: str) -> None:
    """An own student with dropout and other random numbers; FSP's two stages with CRD's memory."""
    whole, args = wholes(kind)
    killed, _ = stopped_and_continued(forked, whole, "out", args, when, "SIGKILL")
    assert killed.status == -9


# -- 40 random moments -----------------------------------------------------------------------------------------------


@pytest.mark.reliability
@pytest.mark.parametrize("number", range(6))
@pytest.mark.parametrize("kind", ["own", "accumulation", "crd", "fsp"])
def test_killed_at_random_moments(forked: Forked, wholes: Any, kind: str, number: int) -> None:
    whole, args = wholes(kind)
    when, said = random_moment(kind, number)
    killed, again = stopped_and_continued(forked, whole, "out", args, when, "SIGKILL")
    # Accumulated steps save less often: a late moment of saving may never come.
    assert killed.status in (-9, 0) and again.status == 0, said


@pytest.fixture(scope="session")
def whole_of_two(forked: Forked, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return whole_of_two_ranks(forked, tmp_path_factory, "step_two", OWN)


@pytest.mark.reliability
@pytest.mark.parametrize("number", range(6))
def test_two_ranks_killed_at_random_moments(forked: Forked, whole_of_two: Path, number: int) -> None:
    """Rank 0 is killed, and rank 1 ends by itself."""
    when, said = random_moment("two ranks", number)
    command = fit("out", *OWN, *TWO, *killing(when))
    killed = ended(as_torchrun(forked, *command))
    assert all(each.status for each in killed) or not any(each.status for each in killed), said
    again = ended(as_torchrun(forked, *command, NO_FAULTS="1"))
    assert [each.status for each in again] == [0, 0], (said, [each.err[-500:] for each in again])
    assert_same_run(whole_of_two, folder("out"))


@pytest.mark.reliability
@pytest.mark.parametrize("number", range(4))
def test_a_pack_killed_at_random_moments(forked: Forked, tmp_path_factory: pytest.TempPathFactory, number: int) -> None:
    """A pack of ``bench``."""

    def make(root: Path) -> None:
        os.chdir(root)
        quick(methods=["vanilla", "kd", "sp"], seeds=[0], trainer={"max_epochs": 2})
        outcome = forked.run("bench", "run", "--config", "short.yaml", "--output", "out")
        assert outcome.status == 0, outcome.err

    here = Path.cwd()
    whole = made_once(tmp_path_factory, "step_bench", make) / "out"
    os.chdir(here)
    # Its steps save only every five minutes: a killed pack repeats its epoch.
    when, said = random_moment("bench", number, MOMENTS[:3] + MOMENTS[-5:] + SAVES[:3])
    quick(methods=["vanilla", "kd", "sp"], seeds=[0], trainer={"max_epochs": 2})
    command = ["bench", "run", "--config", "short.yaml", "--output", "out"]
    killed = forked.run(*command, SIGNAL_IN_PACK=f"{when} SIGKILL")
    assert killed.status in (-9, 0), said
    again = forked.run(*command)
    assert again.status == 0, (said, again.err)
    for name in ("vanilla", "kd", "sp"):
        cell = Path(f"cells/resnet20_resnet8/{name}/seed_0")
        assert_same_run(whole / cell, Path("out") / cell)


PACK_MOMENTS = [
    *(f"on_train_batch_end:{i}" for i in range(6)),
    *(f"on_validation_batch_end:{i}" for i in range(6)),
    *("on_train_epoch_end:0", "on_train_epoch_end:1"),
    *SAVES[:8],
]


@pytest.mark.reliability
@pytest.mark.parametrize("number", range(6))
@pytest.mark.parametrize("ranks", [1, 2])
def test_a_pack_from_python_killed_at_random_moments(
    forked: Forked, tmp_path_factory: pytest.TempPathFactory, ranks: int, number: int
) -> None:
    def run(*args: str) -> list[Any]:
        command = ["tests.runs.pack_of_two", "out", str(ranks), *args]
        return ended(as_torchrun(forked, *command)) if ranks == 2 else [forked.run(*command)]

    def make(root: Path) -> None:
        os.chdir(root)
        assert not any(each.status for each in run("never:0"))

    here = Path.cwd()
    whole = made_once(tmp_path_factory, f"step_pack_{ranks}", make) / "out"
    os.chdir(here)
    when, said = random_moment(f"pack on {ranks}", number, PACK_MOMENTS)
    assert run(when, "SIGKILL")[0].status in (-9, 0), said
    again = run("never:0")
    assert not any(each.status for each in again), (said, again[0].err)
    for name in ("vanilla", "kd", "crd"):
        one, other = (load(root / name / "checkpoints" / "last.ckpt") for root in (whole, Path("out")))
        for part in ("state_dict", "optimizer_states", "lr_schedulers", "epoch", "global_step"):
            assert_equal(one[part], other[part], f"{said} {name} {part}")


# -- any Trainer -----------------------------------------------------------------------------------------------------


class Foreign(pl.LightningModule):
    """A module of another project: dropout, Adam, a schedule per step, and draws of Python and NumPy."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 2))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        (x,) = batch
        noise = random.random() + float(np.random.rand()) + torch.rand(())
        return (self.net(x) * noise).square().mean()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("score", self.net(batch[0]).mean() + torch.rand(()))

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam(self.parameters(), 0.01)
        return [optimizer], [{"scheduler": torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9), "interval": "step"}]


class Stateful(DataLoader[Any]):
    """A loader of fixed order that begins where it stopped."""

    begun = 0

    def __iter__(self) -> Any:
        first = self.begun % len(self)
        for self.begun, batch in enumerate(super().__iter__(), 1):
            if self.begun > first:
                yield batch

    def state_dict(self) -> dict[str, Any]:
        return {"begun": self.begun}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.begun = state["begun"]


class Halt(pl.Callback):
    """Raise an error at a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(self, trainer: pl.Trainer, *args: Any) -> None:
        if trainer.global_step == self.step:
            raise RuntimeError("halt")


def foreign_fit(
    path: str,
    *more: pl.Callback,
    loader: type[DataLoader[Any]] = Stateful,
    ckpt_path: str | None = None,
    **settings: Any,
) -> pl.Trainer:
    """Train with StepCheckpoint alone, which writes ``path``."""
    pl.seed_everything(3, verbose=False)
    minutes = settings.pop("minutes", 1e-6)
    trainer = pl.Trainer(
        max_epochs=2, accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        callbacks=[StepCheckpoint(minutes, path), *more], num_sanity_val_steps=0, **settings,
    )  # fmt: skip
    images = torch.linspace(-1, 1, 80).reshape(20, 4)
    # torch's loader draws from the global random state, if it is not given another.
    own = {"generator": torch.Generator()} if loader is Stateful else {"shuffle": True}
    train: Any = loader(TensorDataset(images), batch_size=4, **own)
    trainer.fit(Foreign(), train, DataLoader(TensorDataset(images[:8]), batch_size=4), ckpt_path=ckpt_path)
    return trainer


def assert_continues(step: int, **settings: Any) -> None:
    whole = foreign_fit("whole.ckpt", **settings)
    with pytest.raises(RuntimeError, match="halt"):
        foreign_fit("broken.ckpt", Halt(step), **settings)
    assert load(Path("broken.ckpt"))["global_step"] == step
    again = foreign_fit("broken.ckpt", ckpt_path="broken.ckpt", **settings)
    one, other = load(Path("whole.ckpt")), load(Path("broken.ckpt"))
    for part in ("state_dict", "optimizer_states", "lr_schedulers", "epoch", "global_step", "random_states"):
        assert_equal(one[part], other[part], part)
    assert whole.callback_metrics["score"] == again.callback_metrics["score"]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("step", "accumulated"), [(1, 1), (4, 1), (5, 1), (6, 1), (9, 1), (1, 2), (3, 2), (5, 2)])
def test_any_trainer_continues_exactly(step: int, accumulated: int) -> None:
    """Another project's module, with a loader that stores where it is."""
    assert_continues(step, accumulate_grad_batches=accumulated)


@pytest.mark.filterwarnings("ignore")
def test_torchs_own_loader_continues_exactly_between_epochs() -> None:
    """With the shuffled order of the uninterrupted run."""
    assert_continues(5, loader=DataLoader)


SHUFFLED = [
    "fit",
    "--config=configs/base.yaml",
    "--data=tests.runs.nets.Shuffled",
    *OWN,
    "--model.milestones=[1]",
    "--trainer.max_epochs=2",
    *QUIET,
]


@pytest.mark.parametrize("moment", ["on_validation_batch_end:1", "on_validation_batch_end:5", "on_validation_start:1"])
def test_torchs_own_loader_after_a_stop_in_an_evaluation(forked: Forked, moment: str) -> None:
    """Lightning tries one or two evaluation batches before the first epoch; the run goes on as an uninterrupted one."""
    whole = forked.run(*SHUFFLED, "--trainer.default_root_dir=whole")
    assert whole.status == 0, whole.err
    command = [*SHUFFLED, "--trainer.default_root_dir=out", *sending(moment, "SIGTERM")]
    assert forked.run(*command).status == 143
    assert (again := forked.run(*command, NO_FAULTS="1")).status == 0, again.err
    assert_same_run(folder("whole"), folder("out"))


def test_a_loader_without_images(forked: Forked) -> None:
    words = [arg.replace("Shuffled", "Empty") for arg in SHUFFLED]
    empty = forked.run(*words, "--trainer.default_root_dir=out")
    assert empty.status == 2
    assert empty.err.strip().splitlines()[-1].startswith("error: nothing was trained: the loader of training batches")


@pytest.mark.filterwarnings("ignore")
def test_without_random_states_it_would_not() -> None:
    """The module of the tests above notices other random numbers."""
    foreign_fit("whole.ckpt")
    with pytest.raises(RuntimeError, match="halt"):
        foreign_fit("broken.ckpt", Halt(4))
    content = load(Path("broken.ckpt"))
    del content["random_states"]
    torch.save(content, "broken.ckpt")
    foreign_fit("broken.ckpt", ckpt_path="broken.ckpt")
    one, other = (load(Path(name))["state_dict"]["net.0.weight"] for name in ("whole.ckpt", "broken.ckpt"))
    assert not torch.equal(one, other)


@pytest.mark.filterwarnings("ignore")
def test_minutes_0_saves_only_epochs() -> None:
    with pytest.raises(RuntimeError, match="halt"):
        foreign_fit("a.ckpt", Halt(8), minutes=0)
    assert load(Path("a.ckpt"))["global_step"] == 5


@pytest.mark.parametrize("minutes", [-1.0, float("nan"), float("inf")])
def test_minutes_that_are_no_time(minutes: float) -> None:
    with pytest.raises(UserError, match=r"StepCheckpoint\.minutes: expected 0 or more"):
        StepCheckpoint(minutes)


def test_random_states_are_complete_and_checked() -> None:
    """Python, NumPy with its half-used normal draw, and torch; damaged ones are refused in a line."""
    random.gauss(0, 1), np.random.randn()
    state = random_state(torch.device("cpu"))
    torch.save(state, "state.pt")
    first = (random.gauss(0, 1), np.random.randn(), torch.rand(3).tolist())
    set_random_state(torch.load("state.pt", weights_only=True), torch.device("cpu"))
    assert first == (random.gauss(0, 1), np.random.randn(), torch.rand(3).tolist())
    for broken in ({}, {**state, "python": None}, {**state, "torch": torch.zeros(3)}, {**state, "numpy": ["x", 1]}):
        with pytest.raises(UserError, match="random states are damaged"):
            set_random_state(broken, torch.device("cpu"))
