"""A pack's members are their solo runs, bit for bit; a member that fails does not affect the others."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from ickd_pl import Batch, DistillationModule, Features, LossStrategy, UserError, load_student
from ickd_pl.benchmark.cells import Job, train_pack
from ickd_pl.benchmark.plan import Cell
from ickd_pl.runs import RunFolder
from ickd_pl.runs.pack_folder import PackRecord
from ickd_pl.strategies.base import discover
from ickd_pl.training.pack import Pack
from tests.runs.helpers import QUIET, Run, cli, fit_args, load, rows_of, student_args
from tests.training.packs import assert_solo, data, make_teacher, member, packed, solo, trainer

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


def test_every_member_is_its_solo_run() -> None:
    taught = make_teacher()
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
    kept = load(Path("pack/pack.ckpt"))["state_dict"]
    assert {key.split(".")[0] for key in kept} == {"members"}
    assert not [key for key in kept if key.split(".")[2] == "teacher"]


def test_a_finished_member_serves_as_its_solo_run_does(teacher: Run) -> None:
    """It is tested, exported and loaded, and ``fit`` on its folder has nothing left to do."""
    jobs = []
    for method in ("kd", "at"):
        args = fit_args(Path("out"), student_args(teacher, method))
        cell = Cell("student", "resnet8", 0, "resnet20_resnet8", "resnet20", method)
        jobs.append(Job(cell, args, Path("out/digits/resnet20_resnet8") / method / "seed_0"))
    assert [outcome.status for outcome in train_pack(jobs, Path("pack.ckpt"))] == ["done", "done"]
    for job in jobs:
        last = job.folder / "checkpoints" / "last.ckpt"
        assert "already finished" in cli(*job.args).out
        tested = cli("test", "--ckpt_path", last, *QUIET)
        exported = cli("export", "--ckpt_path", last, "--format", "safetensors")
        assert (tested.status, exported.status) == (0, 0), tested.err + exported.err
        acc1 = float(rows_of(job.folder)[-1]["test/acc1"])
        assert float(re.search(r"test/acc1\D+([\d.]+)", tested.out)[1]) == pytest.approx(acc1, abs=1e-3)  # type: ignore[index]
        image = torch.randn(2, 3, 32, 32)
        module = DistillationModule.load_from_checkpoint(last).eval()
        assert torch.equal(module(image), load_student(last)(image))


def test_bfloat16() -> None:
    """Gradients of losses in full precision are in full precision, also in a pack's step."""
    taught = make_teacher()
    settings: dict[str, Any] = {"precision": "bf16-mixed", "epochs": 1}
    packed(Path("pack"), {name: member(names, taught) for name, names in MEMBERS.items()}, **settings)
    for name, names in MEMBERS.items():
        solo(Path("solo"), name, member(names, taught), **settings)
        assert_solo(Path("pack") / name, Path("solo") / name)


def test_a_pack_resumes_from_its_checkpoint() -> None:
    taught = make_teacher()

    def modules() -> dict[str, DistillationModule]:
        return {name: member(MEMBERS[name], taught) for name in ("vanilla", "kd", "crd")}

    packed(Path("whole"), modules(), epochs=3)
    packed(Path("half"), modules(), epochs=2)
    pack = Pack(list(modules().values()), list(modules()))
    folders = [RunFolder(Path("half") / name) for name in modules()]
    # Older packs stored their first member twice, with the teacher.
    content = load(Path("half/pack.ckpt"))
    state = content["state_dict"]
    state |= {key.replace("members.1.", "_first."): v for key, v in state.items() if key.startswith("members.1.")}
    state |= {f"_first.teacher.{key}": torch.zeros_like(value) for key, value in taught.state_dict().items()}
    torch.save(content, "half/pack.ckpt")
    again = trainer(PackRecord(Path("half/pack.ckpt"), folders, [{} for _ in folders]), epochs=3)
    again.fit(pack, data(), ckpt_path="half/pack.ckpt")
    for name in modules():
        assert_solo(Path("whole") / name, Path("half") / name)


def test_a_failing_member_is_reported_and_the_others_continue() -> None:
    taught = make_teacher()
    bomb = DistillationModule("resnet8", taught, strategies=[Bomb()], num_classes=10, milestones=[1])
    with pytest.warns(UserWarning, match="bomb is stopped, the others continue: .*loss/bomb"):
        pack = packed(Path("pack"), {"kd": member(["kd"], taught), "bomb": bomb, "sp": member(["sp"], taught)})
    assert list(pack.stopped) == ["bomb"]
    for name in ("kd", "sp"):
        solo(Path("solo"), name, member([name], taught))
        assert_solo(Path("pack") / name, Path("solo") / name)
    assert not (Path("pack/bomb") / "checkpoints" / "last.ckpt").exists()
    assert not (Path("pack/bomb") / "finished").exists()


def test_the_run_ends_if_every_member_fails() -> None:
    bomb = DistillationModule("resnet8", make_teacher(), strategies=[Bomb()], num_classes=10)
    with pytest.raises(UserError, match="every member of the pack is stopped"), pytest.warns(UserWarning):
        packed(Path("pack"), {"bomb": bomb})


@pytest.mark.parametrize(("algorithm", "value"), [("norm", 0.1), ("value", 0.01)])
def test_clipping_is_per_member(algorithm: str, value: float) -> None:
    taught = make_teacher()
    clip: dict[str, Any] = {"gradient_clip_val": value, "gradient_clip_algorithm": algorithm}
    pack = Pack([member(["kd"], taught), member([], taught)], **clip)
    folders = [RunFolder(Path("pack") / name) for name in pack.names]
    trainer(PackRecord(Path("pack/pack.ckpt"), folders, [{}, {}])).fit(pack, data())
    for name in ("kd", "vanilla"):
        solo(Path("solo"), name, member(MEMBERS[name], taught), **clip)
        assert_solo(Path("pack") / name, Path("solo") / name)


class Hooked(Bomb):
    """Uses a hook that a pack runs once for all members."""

    def on_after_backward(self, trainer: Any, pl_module: Any) -> None:
        pass


def test_what_cannot_be_packed() -> None:
    taught = make_teacher()
    fsp = DistillationModule("resnet8", taught, strategies=[discover()["fsp"]()], num_classes=10)
    with pytest.raises(UserError, match="fsp cannot be packed, because FSP has a first stage"):
        Pack([fsp])
    hooked = DistillationModule("resnet8", taught, strategies=[Hooked()], num_classes=10)
    with pytest.raises(UserError, match="because Hooked uses the hook on_after_backward: run it alone"):
        Pack([hooked])
    dropping = member(["kd"], taught)
    dropping.student.fc = nn.Sequential(nn.Dropout(0.1), dropping.student.fc)
    with pytest.raises(UserError, match="its student has dropout"):
        Pack([dropping])
    with pytest.raises(UserError, match="at least one member"):
        Pack([])
    with pytest.raises(UserError, match="all different"):
        Pack([member(["kd"], taught), member(["kd"], taught)])
    with pytest.raises(UserError, match="share one teacher"):
        Pack([member(["kd"], taught), member(["sp"], make_teacher())])
    other = DistillationModule("resnet8", num_classes=4)
    with pytest.raises(UserError, match="share their data: num_classes is 10"):
        Pack([member(["kd"], taught), other])


TWO_RANKS = """
import sys, torch, warnings
warnings.filterwarnings("ignore")
from pathlib import Path
from ickd_pl import get_model
from tests.training.packs import member, packed, solo
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


def test_a_pack_is_not_built_from_a_file() -> None:
    with pytest.raises(UserError, match="build its members in Python"):
        Pack.load_from_checkpoint("pack.ckpt")


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"gradient_clip_val": 0.5}, "give it to the pack"),
        ({"accumulate_grad_batches": 2}, "expected accumulate_grad_batches 1, got 2"),
    ],
)
def test_options_of_the_trainer_that_a_pack_cannot_use(settings: dict[str, Any], says: str) -> None:
    pack = Pack([member(["kd"], make_teacher())])
    with pytest.raises(UserError, match=says):
        pl.Trainer(max_epochs=1, logger=False, enable_checkpointing=False, **settings).fit(pack, data(4))
