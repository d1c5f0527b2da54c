"""Fused members of a pack are separate members within rounding; their checkpoints are those of solo runs."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ickd_pl import Batch, Digits, DistillationModule, Features, LayerMap, LossStrategy, get_model, model_names
from ickd_pl.models.hooked import HookedNet
from ickd_pl.runs import RunFolder
from ickd_pl.runs.pack_folder import PackRecord
from ickd_pl.strategies import KD  # type: ignore[attr-defined]
from ickd_pl.strategies.base import discover
from ickd_pl.training.fused import FusedStudents
from ickd_pl.training.pack import Pack
from tests.runs.helpers import load
from tests.training.packs import make_teacher, trainer, without_times

ONE_STAGE = [[name] for name, cls in sorted(discover().items()) if not cls().pretrain_epochs]
MEMBERS = {"_".join(names) or "vanilla": names for names in [[], *ONE_STAGE, ["ickd", "kd"]]}
LAYERS = LayerMap(stem="conv1", stages=("conv1", "bn1"), final="bn1", pooled="fc:in")
# Deep or wide ones of the families, of which others are tried.
SLOW = (
    "resnet32",
    "resnet44",
    "resnet56",
    "resnet110",
    "resnet32x4",
    "ResNet50",
    "vgg11",
    "vgg13",
    "vgg16",
    "vgg19",
    "wrn_40_1",
    "wrn_40_2",
)
CHANNELS_LAST = ("resnet14", "MobileNetV2", "vgg8", "ShuffleV1")
DOUBLE: dict[str, Any] = {"precision": "64-true"}


def assert_close(one: Any, other: Any, tolerance: float, where: str = "") -> None:
    """Equal keys, types and shapes; numbers within the tolerance, relative above 1 and absolute below."""
    assert type(one) is type(other), where
    if isinstance(one, Tensor):
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance, msg=lambda text: f"{where}: {text}")
    elif isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for key in one:
            assert_close(one[key], other[key], tolerance, f"{where}/{key}")
    elif isinstance(one, list | tuple):
        assert len(one) == len(other), where
        for i, (a, b) in enumerate(zip(one, other, strict=True)):
            assert_close(a, b, tolerance, f"{where}/{i}")
    elif isinstance(one, float):
        assert one == pytest.approx(other, rel=max(tolerance, 1e-6), abs=tolerance), where
    else:
        assert one == other, where


def assert_near(one: Path, other: Path, tolerance: float) -> None:
    """Two members' checkpoints agree within the tolerance in all but times."""
    assert_close(without_times(one), without_times(other), tolerance, one.name)


def member(names: list[str], taught: nn.Module, seed: int = 0) -> DistillationModule:
    strategies = [discover()[name]() for name in names]
    teacher = taught if names else None
    return DistillationModule(
        "resnet8", teacher, strategies=strategies, num_classes=10, num_samples=20, seed=seed, milestones=[1]
    )


def fit(root: str, modules: dict[str, DistillationModule], fused: bool, **settings: Any) -> Pack:
    """Three steps an epoch, the last one of four images."""
    pack = Pack(list(modules.values()), list(modules), fused=fused)
    folders = [RunFolder(Path(root) / name) for name in modules]
    record = PackRecord(Path(root) / "pack.ckpt", folders, [{} for _ in folders])
    few = {"limit_val_batches": 1, "epochs": 2, **settings}
    trainer(record, **few).fit(pack, Digits(train_size=20, batch_size=8, eval_batch_size=16))
    return pack


def together(pack: Pack) -> list[list[str]]:
    """Names of the members that were computed together."""
    assert pack._fusion is not None
    return [[pack.names[i] for i in part.positions] for part in pack._fusion.parts(range(len(pack.names)))]


@pytest.fixture
def taught() -> nn.Module:
    torch.manual_seed(0)
    return make_teacher()


def test_members_are_separate_members_within_rounding(taught: nn.Module) -> None:
    """Weights, buffers, momentum and metrics after six steps; a member's checkpoint is a solo one's."""
    made = lambda: {name: member(names, taught, seed=i) for i, (name, names) in enumerate(MEMBERS.items())}  # noqa: E731
    fit("apart", made(), fused=False, **DOUBLE)
    pack = fit("fused", made(), fused=True, **DOUBLE)
    # A method that has changed its student is computed with its like.
    changed = [n for n, m in MEMBERS.items() if any(discover()[each].prepare is not LossStrategy.prepare for each in m)]
    assert together(pack) == [[name for name in MEMBERS if name not in changed], changed]
    for name in MEMBERS:
        assert_near(Path("fused", name), Path("apart", name), 1e-10)
    loaded = DistillationModule.load_from_checkpoint("fused/ickd/checkpoints/last.ckpt", teacher=taught)
    state = load(Path("fused/ickd/checkpoints/last.ckpt"))["optimizer_states"][0]
    loaded.configure_optimizers()["optimizer"].load_state_dict(state)


@pytest.mark.parametrize("name", [n for n in model_names() if n not in SLOW])
def test_every_network_is_computed_as_alone(name: str) -> None:
    nets: list[Any] = [get_model(name, 10).double().train() for _ in range(2)]
    if name in CHANNELS_LAST:
        nets = [net.to(memory_format=torch.channels_last) for net in nets]
    apart = copy.deepcopy(nets)
    image = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    found = FusedStudents(nets).features(image, preact=True)
    expected = [net.features(image, preact=True) for net in apart]
    for one, other in zip(found, expected, strict=True):
        values = [{**vars(f), "classifier": [w.detach() for w in f.classifier]} for f in (one, other)]  # type: ignore[union-attr]
        assert_close(*values, 1e-10, name)
    for results in (found, expected):
        torch.autograd.backward([(f.logits.square().mean() + f.stages[-1].sum()) for f in results])
    for net, own in zip(nets, apart, strict=True):
        assert_close(dict(net.named_buffers()), dict(own.named_buffers()), 1e-10, name)
        assert_close([p.grad for p in net.parameters()], [p.grad for p in own.parameters()], 1e-8, name)
        for layout in (torch.contiguous_format, torch.channels_last):
            dense = [p for p in net.parameters() if p.dim() == 4 and p.is_contiguous(memory_format=layout)]
            assert all(p.grad.is_contiguous(memory_format=layout) for p in dense)


def hooked() -> HookedNet:
    return HookedNet(get_model("resnet8", 10), LAYERS)


def test_who_is_computed_together(taught: nn.Module) -> None:
    """Students of one architecture, the user's own too; not those that others have hooks on."""
    watched, seen = get_model("resnet8", 10), []
    watched.conv1.register_forward_hook(lambda module, args, output: seen.append(output.shape))
    students: dict[str, Any] = {
        "a": "resnet8", "other": "resnet14", "own_1": hooked(), "watched": watched, "b": "resnet8", "own_2": hooked(),
        "eval": get_model("resnet8", 10),
    }  # fmt: skip
    modules = {
        name: DistillationModule(net, taught, strategies=[KD()], num_classes=10) for name, net in students.items()
    }
    modules["eval"].student.bn1.eval()
    pack = fit("pack", modules, fused=True, epochs=1, limit_train_batches=1)
    assert together(pack) == [["a", "b"], ["other"], ["own_1", "own_2"], ["watched"], ["eval"]]
    assert set(seen) >= {(8, 16, 32, 32)} and not any(len(shape) != 4 for shape in seen)


class Stubborn(nn.Module):
    """Looks at values, or is scaled by a number that no weight shows."""

    def __init__(self, factor: float = 0.0) -> None:
        super().__init__()
        self.conv1, self.bn1, self.fc = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 10)
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn1(self.conv1(x))
        if not self.factor and float(x.sum()) > 1e9:
            x = -x
        logits: Tensor = self.fc(x.mean((2, 3))) * (self.factor or 1.0)
        return logits


@pytest.mark.parametrize(
    ("factors", "says"), [((0.0, 0.0), "item"), ((1.0, 3.0), "another one than that of each student alone")]
)
def test_what_vmap_cannot_do_is_computed_apart(taught: nn.Module, factors: tuple[float, ...], says: str) -> None:
    def modules() -> dict[str, DistillationModule]:
        torch.manual_seed(0)
        nets = [HookedNet(Stubborn(factor), LAYERS) for factor in factors]
        return {str(i): DistillationModule(n, taught, strategies=[KD()], num_classes=10) for i, n in enumerate(nets)}

    with pytest.warns(UserWarning, match=f"fused: 0, 1 cannot be fused and are computed one by one: .*{says}"):
        pack = fit("fused", modules(), fused=True, epochs=2)
    assert together(pack) == [["0"], ["1"]]
    fit("apart", modules(), fused=False, epochs=2)
    for name in "01":
        assert_near(Path("fused", name), Path("apart", name), 0.0)


class Bomb(KD):
    """Becomes NaN in the third step of the fit."""

    steps = 0

    def loss(self, student: Features, teacher: Features, batch: Batch, adapter: nn.Module | None) -> Tensor:
        self.steps += 1
        return super().loss(student, teacher, batch, adapter) * (float("nan") if self.steps == 3 else 1.0)


def test_a_member_that_fails_does_not_touch_the_others(taught: nn.Module) -> None:
    """It leaves the group; clipping is per member."""

    def modules() -> dict[str, DistillationModule]:
        bomb = DistillationModule("resnet8", taught, strategies=[Bomb()], num_classes=10)
        return {"kd": member(["kd"], taught), "bomb": bomb, "ickd": member(["ickd"], taught, seed=1)}

    for fused in (True, False):
        with pytest.warns(UserWarning, match="bomb is stopped, the others continue"):
            pack = Pack(list((made := modules()).values()), list(made), gradient_clip_val=0.5, fused=fused)
            folders = [RunFolder(Path(str(fused)) / name) for name in made]
            record = PackRecord(Path(str(fused)) / "pack.ckpt", folders, [{} for _ in folders])
            few = Digits(train_size=20, batch_size=8, eval_batch_size=16)
            trainer(record, limit_val_batches=1, **DOUBLE).fit(pack, few)
        assert [part.positions for part in pack._parts()] == ([[0, 2]] if fused else [[0], [2]])
        assert all(bool(p.isfinite().all()) for p in made["bomb"].parameters())
    for name in ("kd", "ickd"):
        assert_near(Path("True", name), Path("False", name), 1e-10)


def test_bfloat16_and_channels_last(taught: nn.Module) -> None:
    """After a step as near to float32 as separate members are."""

    def trained(fused: bool, precision: str) -> Tensor:
        made = {n: member([n], taught).to(memory_format=torch.channels_last) for n in ("kd", "at", "ickd")}
        parameters = [p for m in made.values() for p in m.trainable()]
        layouts = [p.stride() for p in parameters]
        pack = fit(f"{fused}{precision}", made, fused, precision=precision, epochs=1, limit_train_batches=1)
        assert not fused or together(pack) == [["kd", "at", "ickd"]]
        assert layouts == [p.stride() for p in parameters]
        return torch.cat([p.detach().flatten() for p in parameters])

    exact, apart = trained(False, "32-true"), trained(False, "bf16-mixed")
    assert float((trained(True, "bf16-mixed") - exact).norm()) <= 1.5 * float((apart - exact).norm())
    torch.testing.assert_close(trained(True, "32-true"), exact, rtol=1e-3, atol=1e-4)


TWO_RANKS = """
import sys, torch, warnings
warnings.filterwarnings("ignore")
from pathlib import Path
from tests.training.packs import make_teacher, member, packed
torch.set_num_threads(1)
torch.manual_seed(0)
taught = make_teacher()
names = {"vanilla": [], "fitnet": ["fitnet"], "crd": ["crd"]}
for kind in ("fused", "apart"):
    packed(Path(kind), {n: member(s, taught) for n, s in names.items()}, {"fused": kind == "fused"}, devices=2,
           strategy="ddp", precision="64-true", epochs=1, limit_val_batches=1)
torch.distributed.destroy_process_group()
"""


@pytest.mark.reliability
@pytest.mark.ddp
def test_two_ranks() -> None:
    Path("two.py").write_text(TWO_RANKS)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "two.py"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    for name in ("vanilla", "fitnet", "crd"):
        a, b = (load(Path(kind, name, "checkpoints", "last.ckpt"))["state_dict"] for kind in ("fused", "apart"))
        assert_close(a, b, 1e-10, name)
