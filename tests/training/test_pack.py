"""A pack's members are their solo runs, bit for bit; a member that fails leaves the others alone."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from ickd_pl import Batch, Digits, DistillationModule, Features, LossStrategy, UserError, get_model
from ickd_pl.runs import EpochRecord, RunFolder
from ickd_pl.runs.pack_folder import PackRecord
from ickd_pl.strategies.base import discover
from ickd_pl.training.pack import Pack
from tests.runs.helpers import assert_equal, load, rows_of

# Every method that needs no first stage, Vanilla, and a sum of two.
ONE_STAGE = [[name] for name, cls in sorted(discover().items()) if not cls().pretrain_epochs]
MEMBERS = {"_".join(names) or "vanilla": names for names in [[], *ONE_STAGE, ["ickd", "kd"]]}


class Bomb(LossStrategy):
    """Becomes NaN in the third step of the fit."""

    def __init__(self, weight: float = 1.0) -> None:
        self.weight = weight
        self._steps = 0

    def loss(self, student: Features, teacher: Features, batch: Batch, adapter: nn.Module | None) -> Tensor:
        self._steps += 1
        return student.logits.square().mean() * (float("nan") if self._steps == 3 else 1.0)


def data() -> Digits:
    return Digits(train_size=72, batch_size=32)  # an uneven last batch


def teacher() -> nn.Module:
    return get_model("resnet14", 10).eval().requires_grad_(False)


def member(names: list[str], taught: nn.Module, seed: int = 0, **settings: Any) -> DistillationModule:
    strategies = [discover()[name]() for name in names]
    return DistillationModule(
        "resnet8", taught if names else None, strategies=strategies, num_classes=10, num_samples=72, seed=seed,
        **{"milestones": [1], **settings},
    )  # fmt: skip


def trainer(record: pl.Callback, epochs: int = 2, **settings: Any) -> pl.Trainer:
    return pl.Trainer(
        max_epochs=epochs, logger=False, callbacks=[record], enable_progress_bar=False, enable_model_summary=False,
        num_sanity_val_steps=0, accelerator="cpu", use_distributed_sampler=False, **settings,
    )  # fmt: skip


def solo(root: Path, name: str, module: DistillationModule, **settings: Any) -> None:
    trainer(EpochRecord(RunFolder(root / name), {}), **settings).fit(module, data())


def packed(root: Path, modules: dict[str, DistillationModule], **settings: Any) -> Pack:
    pack = Pack(list(modules.values()), list(modules))
    folders = [RunFolder(root / name) for name in modules]
    trainer(PackRecord(root / "pack.ckpt", folders, [{} for _ in folders]), **settings).fit(pack, data())
    return pack


def assert_solo(one: Path, other: Path) -> None:
    """Two checkpoints agree in everything but the seconds."""
    a, b = load(one / "checkpoints" / "last.ckpt"), load(other / "checkpoints" / "last.ckpt")
    for content in (a, b):
        for row in content["callbacks"]["EpochRecord"]["rows"]:
            row.pop("seconds")
    assert_equal(a, b, one.name)
    assert rows_of(one) == rows_of(other)


def test_every_member_is_its_solo_run() -> None:
    taught = teacher()
    before = {key: value.clone() for key, value in taught.state_dict().items()}
    packed(Path("pack"), {name: member(names, taught) for name, names in MEMBERS.items()}, epochs=1)
    for name, names in MEMBERS.items():
        solo(Path("solo"), name, member(names, taught), epochs=1)
        assert_solo(Path("pack") / name, Path("solo") / name)
        module = DistillationModule.load_from_checkpoint(
            Path("pack") / name / "checkpoints" / "last.ckpt", strategies=[], weights_only=True
        )
        assert module.student_name == "resnet8"
    assert all(torch.equal(value, before[key]) for key, value in taught.state_dict().items())
    assert not [key for key in load(Path("pack/pack.ckpt"))["state_dict"] if key.split(".")[2] == "teacher"]


def test_members_may_differ_in_seed_rate_and_schedule() -> None:
    taught = teacher()
    settings: dict[str, dict[str, Any]] = {
        "a": {"seed": 1},
        "b": {"lr": 0.01, "milestones": [2]},
        "c": {"momentum": 0.5},
    }
    packed(Path("pack"), {name: member(["kd"], taught, **own) for name, own in settings.items()})
    for name, own in settings.items():
        solo(Path("solo"), name, member(["kd"], taught, **own))
        assert_solo(Path("pack") / name, Path("solo") / name)


def test_bfloat16() -> None:
    """Losses in full precision have their gradients in full precision too, also within a pack's step."""
    taught = teacher()
    settings: dict[str, Any] = {"precision": "bf16-mixed", "epochs": 1}
    packed(Path("pack"), {name: member(names, taught) for name, names in MEMBERS.items()}, **settings)
    for name, names in MEMBERS.items():
        solo(Path("solo"), name, member(names, taught), **settings)
        assert_solo(Path("pack") / name, Path("solo") / name)


def test_a_packs_checkpoint_continues_it() -> None:
    taught = teacher()

    def modules() -> dict[str, DistillationModule]:
        return {name: member(MEMBERS[name], taught) for name in ("vanilla", "kd", "crd")}

    packed(Path("whole"), modules(), epochs=3)
    packed(Path("half"), modules(), epochs=2)
    pack = Pack(list(modules().values()), list(modules()))
    folders = [RunFolder(Path("half") / name) for name in modules()]
    again = trainer(PackRecord(Path("half/pack.ckpt"), folders, [{} for _ in folders]), epochs=3)
    again.fit(pack, data(), ckpt_path="half/pack.ckpt")
    for name in modules():
        assert_solo(Path("whole") / name, Path("half") / name)


def test_a_member_that_fails_is_named_and_the_others_go_on() -> None:
    taught = teacher()
    bomb = DistillationModule("resnet8", taught, strategies=[Bomb()], num_classes=10, milestones=[1])
    with pytest.warns(UserWarning, match="bomb is stopped, the others go on: .*loss/bomb"):
        pack = packed(Path("pack"), {"kd": member(["kd"], taught), "bomb": bomb, "sp": member(["sp"], taught)})
    assert list(pack.stopped) == ["bomb"]
    for name in ("kd", "sp"):
        solo(Path("solo"), name, member([name], taught))
        assert_solo_state(Path("pack") / name, Path("solo") / name)
    assert not (Path("pack/bomb") / "checkpoints" / "last.ckpt").exists()
    assert not (Path("pack/bomb") / "finished").exists()


def assert_solo_state(one: Path, other: Path) -> None:
    a, b = load(one / "checkpoints" / "last.ckpt"), load(other / "checkpoints" / "last.ckpt")
    assert_equal(a["state_dict"], b["state_dict"])
    assert rows_of(one) == rows_of(other)


def test_every_member_failing_ends_the_run() -> None:
    bomb = DistillationModule("resnet8", teacher(), strategies=[Bomb()], num_classes=10)
    with pytest.raises(UserError, match="every member of the pack is stopped"), pytest.warns(UserWarning):
        packed(Path("pack"), {"bomb": bomb})


@pytest.mark.parametrize(("algorithm", "value"), [("norm", 0.1), ("value", 0.01)])
def test_clipping_is_per_member(algorithm: str, value: float) -> None:
    taught = teacher()
    clip: dict[str, Any] = {"gradient_clip_val": value, "gradient_clip_algorithm": algorithm}
    pack = Pack([member(["kd"], taught), member([], taught)], **clip)
    folders = [RunFolder(Path("pack") / name) for name in pack.names]
    trainer(PackRecord(Path("pack/pack.ckpt"), folders, [{}, {}])).fit(pack, data())
    for name in ("kd", "vanilla"):
        solo(Path("solo"), name, member(MEMBERS[name], taught), **clip)
        assert_solo_state(Path("pack") / name, Path("solo") / name)


class Hooked(Bomb):
    """Uses a hook of which a pack has one for all members."""

    def on_after_backward(self, trainer: Any, pl_module: Any) -> None:
        pass


def test_what_cannot_be_packed() -> None:
    taught = teacher()
    fsp = DistillationModule("resnet8", taught, strategies=[discover()["fsp"]()], num_classes=10)
    with pytest.raises(UserError, match="fsp cannot be packed, for FSP has a first stage"):
        Pack([fsp])
    hooked = DistillationModule("resnet8", taught, strategies=[Hooked()], num_classes=10)
    with pytest.raises(UserError, match="for Hooked uses the hook on_after_backward: run it alone"):
        Pack([hooked])
    dropping = member(["kd"], taught)
    dropping.student.fc = nn.Sequential(nn.Dropout(0.1), dropping.student.fc)
    with pytest.raises(UserError, match="its student has dropout"):
        Pack([dropping])
    with pytest.raises(UserError, match="at least one member"):
        Pack([])
    with pytest.raises(UserError, match="different names"):
        Pack([member(["kd"], taught), member(["kd"], taught)])
    with pytest.raises(UserError, match="share one teacher"):
        Pack([member(["kd"], taught), member(["sp"], teacher())])
    other = DistillationModule("resnet8", num_classes=4)
    with pytest.raises(UserError, match="share their data: num_classes is 10"):
        Pack([member(["kd"], taught), other])


TWO_RANKS = """
import sys, torch, warnings
warnings.filterwarnings("ignore")
from pathlib import Path
from tests.training.test_pack import *
torch.set_num_threads(1)
torch.manual_seed(0)
taught = get_model("resnet14", 10).eval().requires_grad_(False)
names = {"vanilla": [], "fitnet": ["fitnet"], "crd": ["crd"]}
two = {"devices": 2, "strategy": "ddp", "epochs": 1}
packed(Path("pack"), {n: member(s, taught) for n, s in names.items()}, **two)
for name, own in names.items():
    solo(Path("solo"), name, member(own, taught), **two)
torch.distributed.destroy_process_group()
"""


@pytest.mark.ddp
def test_two_ranks() -> None:
    Path("two.py").write_text(TWO_RANKS)
    root = Path(__file__).resolve().parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "two.py"], env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    for name in ("vanilla", "fitnet", "crd"):
        a, b = (load(Path(kind) / name / "checkpoints" / "last.ckpt") for kind in ("pack", "solo"))
        for key, value in a["state_dict"].items():
            torch.testing.assert_close(value, b["state_dict"][key], rtol=1e-4, atol=1e-5, msg=f"{name} {key}")
        assert len(rows_of(Path("pack") / name)) == 1
