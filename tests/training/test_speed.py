"""Settings of speed: what they change, that they are put back, and runs that are older than they are."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from ickd_pl import Batch, DistillationModule, Features, LossStrategy, UserError, get_model
from ickd_pl.models.hooked import LayerMap
from ickd_pl.seeding import seeded
from ickd_pl.strategies import KD  # type: ignore[attr-defined]
from ickd_pl.training import speed
from ickd_pl.training.speed import SWITCHES, UNSET
from tests.runs.helpers import QUIET, TINY, Run, cli, load, rows_of, student_args
from tests.training.packs import assert_solo, data, member, packed, solo

FAST = {"channels_last": True, "tf32": True}


def taught() -> nn.Module:
    with seeded("taught"):
        return get_model("resnet8", 10).eval().requires_grad_(False)


@pytest.fixture
def no_compiler(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    def broken(*args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("no working C++ compiler found\n\nSet TORCHDYNAMO_VERBOSE=1 for the internal stack trace\n")

    monkeypatch.setattr(torch, "compile", broken)
    for cached in (speed.can_compile, speed._warn_once):
        cached.cache_clear()
    yield
    for cached in (speed.can_compile, speed._warn_once):
        cached.cache_clear()


class Kept(pl.Callback):
    """Keeps the checkpoint of the fourth step, within the second epoch."""

    def on_train_batch_end(self, trainer: pl.Trainer, *args: Any, **kwargs: Any) -> None:
        if trainer.global_step == 4:
            trainer.save_checkpoint("step_4.ckpt")


def steps(count: int, **settings: Any) -> pl.Trainer:
    return pl.Trainer(
        max_steps=count, logger=False, enable_progress_bar=False, enable_model_summary=False, accelerator="cpu",
        enable_checkpointing=False, limit_val_batches=0, use_distributed_sampler=False, callbacks=[Kept()], **settings,
    )  # fmt: skip


class Look(LossStrategy):
    """Notes how the run computes."""

    seen: dict[str, Any]

    def __init__(self, weight: float = 1.0) -> None:
        self.weight = weight
        self.seen = {}

    def loss(self, student: Features, teacher: Features, batch: Batch, adapter: nn.Module | None) -> Tensor:
        flags = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
        layouts = [x.is_contiguous(memory_format=torch.channels_last) for x in (student.final, teacher.final)]
        self.seen.update(tf32=flags, layouts=layouts, teacher=teacher.logits)
        return (student.logits - teacher.logits).square().mean()


@pytest.mark.parametrize("on", [False, True])
def test_a_run_computes_as_its_settings_say_and_puts_back_what_it_set(on: bool) -> None:
    look, before = Look(), (torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32)
    net = taught()
    kept = {key: value.clone() for key, value in net.state_dict().items()}
    module = DistillationModule(
        "resnet8", net, strategies=[look], num_classes=10, channels_last=on, fold_teacher=on, tf32=on
    )
    teachers: list[Any] = []
    module.computing.teacher_features = lambda m, image, preact: (  # type: ignore[method-assign]
        teachers.append(m.computing._teacher) or speed._features(m.computing._teacher or m.teacher, image, preact)
    )
    solo(Path("run"), "run", module)
    assert look.seen["tf32"] == (on, on) and look.seen["layouts"] == [on, on]
    assert all((net is not None) == on for net in teachers)
    assert (torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32) == before
    assert module.computing._teacher is None
    assert all(torch.equal(value, kept[key]) for key, value in net.state_dict().items())
    held = load(Path("run/run/checkpoints/last.ckpt"))
    assert {name: held["hyper_parameters"][name] for name in ("channels_last", "fold_teacher", "tf32")} == {
        **dict.fromkeys(("channels_last", "fold_teacher", "tf32"), on)
    }


def test_tf32_is_put_back_after_an_error() -> None:
    class Broken(Look):
        def loss(self, *args: Any) -> Tensor:
            super().loss(*args)
            raise ValueError("stop")

    before = (torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32)
    with pytest.raises(ValueError, match="stop"):
        solo(Path("run"), "run", DistillationModule("resnet8", taught(), strategies=[Broken()], num_classes=10, **FAST))
    assert (torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32) == before


def test_packed_members_are_their_solo_runs() -> None:
    net, names = taught(), {"vanilla": [], "ickd": ["ickd"], "crd": ["crd"]}
    packed(Path("pack"), {name: member(own, net, **FAST) for name, own in names.items()})
    for name, own in names.items():
        solo(Path("solo"), name, member(own, net, **FAST))
        assert_solo(Path("pack") / name, Path("solo") / name)


@pytest.mark.parametrize("settings", [FAST, {**FAST, "precision": "bf16-mixed"}])
def test_a_stopped_run_goes_on_bit_for_bit(settings: dict[str, Any]) -> None:
    """Killed within an epoch: weights, batch norms, memories and momentum of the uninterrupted run."""
    own = {key: value for key, value in settings.items() if key != "precision"}
    precision = settings.get("precision", "32-true")

    def run(ckpt_path: str | None = None) -> tuple[pl.Trainer, DistillationModule]:
        module = member(["crd", "fitnet"], taught(), **own)
        trainer = steps(8, precision=precision)
        trainer.fit(module, data(), ckpt_path=ckpt_path, weights_only=True)
        return trainer, module

    whole, module = run()
    rest, other = run("step_4.ckpt")
    ours, theirs = other.state_dict(), module.state_dict()
    assert all(torch.equal(ours[key], value) for key, value in theirs.items())
    states = [trainer.optimizers[0].state_dict()["state"] for trainer in (whole, rest)]
    for one, two in zip(states[0].values(), states[1].values(), strict=True):
        assert torch.equal(one["momentum_buffer"], two["momentum_buffer"])
        assert one["momentum_buffer"].stride() == two["momentum_buffer"].stride()


class Views(Look):
    def loss(self, student: Features, teacher: Features, batch: Batch, adapter: nn.Module | None) -> Tensor:
        return student.final.view(len(batch.label), -1).square().mean()


def test_a_method_that_views_a_map() -> None:
    def run(channels_last: bool) -> None:
        module = DistillationModule(
            "resnet8", taught(), strategies=[Views()], num_classes=10, channels_last=channels_last
        )
        solo(Path("run"), "run", module)

    run(False)
    with pytest.raises(UserError, match=r"use reshape\(\) or flatten\(\) there, or set model.channels_last to false"):
        run(True)


class Flat(nn.Module):
    """A network of one's own that calls view()."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm, self.fc = nn.Conv2d(3, 4, 3, 4, 1), nn.BatchNorm2d(4), nn.Linear(256, 10)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.fc(self.norm(self.a(x)).relu().view(len(x), -1))
        return logits


@pytest.mark.parametrize("role", ["student", "teacher"])
def test_a_network_that_views_a_map(role: str) -> None:
    """By default it runs, also as a teacher that is folded; with channels_last it is refused before the first step."""
    layers = LayerMap(stem="norm", stages=("norm", "norm"), final="norm", pooled="fc:in")
    student, teacher = ("resnet8", Flat()) if role == "teacher" else (Flat(), taught())

    def run(channels_last: bool) -> None:
        module = DistillationModule(
            student, teacher, strategies=[KD()], num_classes=10, channels_last=channels_last,
            **{f"{role}_layers": layers},
        )  # fmt: skip
        solo(Path("run"), "run", module)

    run(False)
    with pytest.raises(UserError, match=r"use reshape\(\) or flatten\(\) there, or set model.channels_last to false"):
        run(True)


def test_exported_files_do_not_depend_on_the_layout(teacher: Run) -> None:
    last = {}
    for on in ("false", "true"):
        assert cli("fit", *TINY, *student_args(teacher), "--trainer.max_epochs=1", f"--trainer.default_root_dir={on}",
                   f"--model.channels_last={on}").status == 0  # fmt: skip
        (last[on],) = Path(on).rglob("last.ckpt")
        done = cli("export", "--ckpt_path", last[on], "--format", "safetensors", "--output", f"{on}.safetensors")
        assert done.status == 0, done.err
    assert cli("test", "--ckpt_path", last["true"], *QUIET).status == 0


def test_without_a_compiler_a_run_is_eager_and_says_so(
    no_compiler: None, teacher: Run, recwarn: pytest.WarningsRecorder
) -> None:
    done = cli("fit", *TINY, *student_args(teacher), "--trainer.max_epochs=1", "--model.compile=true")
    assert done.status == 0, done.err
    (last,) = Path().rglob("last.ckpt")
    assert load(last)["callbacks"]["EpochRecord"]["inputs"]["compiled"] is False
    texts = [str(warning.message) for warning in recwarn] + done.err.splitlines()
    (said,) = [text for text in texts if "no working C++ compiler found" in text]
    assert "which needs a C++ compiler such as g++" in said and "TORCHDYNAMO" not in said


def test_a_run_with_a_compiler_is_not_continued_without(no_compiler: None, teacher: Run) -> None:
    words = [*TINY, *student_args(teacher), "--model.compile=true"]
    assert cli("fit", *words, "--trainer.max_epochs=1").status == 0
    (last,) = Path().rglob("last.ckpt")
    content = load(last)
    content["callbacks"]["EpochRecord"]["inputs"]["compiled"] = True
    content["callbacks"]["EpochRecord"]["planned"] = 2
    torch.save(content, last)
    (last.parents[1] / "finished").unlink()
    done = cli("fit", *words, "--trainer.max_epochs=1")
    assert done.status == 2 and "compiled steps: True -> False" in done.err


def test_an_older_run_goes_on_without(teacher: Run) -> None:
    """A checkpoint without the settings was computed without them; the same command continues it so."""
    words = [*TINY, *student_args(teacher)]
    assert cli("fit", *words, "--trainer.max_epochs=2", "--model.fold_teacher=false").status == 0
    (last,) = Path().rglob("last.ckpt")
    root = last.parents[1]
    whole, rows = load(last), rows_of(root)
    content = load(root / "checkpoints" / "previous.ckpt")
    for name in UNSET:
        del content["hyper_parameters"][name], content["callbacks"]["EpochRecord"]["config"]["model"][name]
    del content["callbacks"]["EpochRecord"]["inputs"]["compiled"]
    torch.save(content, last)
    (root / "finished").unlink()
    older = DistillationModule.load_from_checkpoint(last)
    assert {name: older.hparams[name] for name in UNSET} == UNSET
    done = cli("fit", *words, "--trainer.max_epochs=2", "--model.channels_last=true")
    assert done.status == 0, done.err
    assert (
        "(it is older than model.channels_last, model.fold_teacher, model.teacher_normalization: without)" in done.out
    )
    again = load(last)
    assert not UNSET.keys() & again["hyper_parameters"].keys()  # so that it can be continued again
    assert all(torch.equal(again["state_dict"][key], value) for key, value in whole["state_dict"].items())
    drop = {"seconds"}
    assert [{k: v for k, v in row.items() if k not in drop} for row in rows_of(root)] == [
        {k: v for k, v in row.items() if k not in drop} for row in rows
    ]
    again["callbacks"]["EpochRecord"]["planned"] = again["callbacks"]["EpochRecord"]["config"]["trainer"][
        "max_epochs"
    ] = 3
    torch.save(again, last)
    (root / "finished").unlink()
    done = cli("fit", *words, "--trainer.max_epochs=3", "--model.channels_last=true")
    assert done.status == 0 and "it is older than" in done.out, done.err


def test_an_older_checkpoint_in_python() -> None:
    net = taught()
    steps(4).fit(member(["kd"], net, fold_teacher=False), data())
    content = load(Path("step_4.ckpt"))
    for name in UNSET:
        del content["hyper_parameters"][name]
    torch.save(content, "old.ckpt")
    module = member(["kd"], net, channels_last=True)
    steps(5).fit(module, data(), ckpt_path="old.ckpt", weights_only=True)
    assert {name: module.hparams[name] for name in UNSET} == UNSET
    assert module.student.conv1.weight.is_contiguous()  # type: ignore[union-attr, operator]


def test_the_shipped_file(teacher: Run) -> None:
    words = [*TINY, *student_args(teacher), "--config", "configs/fast.yaml", "--trainer.max_epochs=1"]
    done = cli("fit", *words)
    assert done.status == 0, done.err
    (last,) = Path().rglob("last.ckpt")
    content = load(last)
    assert content["hyper_parameters"]["channels_last"] and content["hyper_parameters"]["tf32"]
    assert content["callbacks"]["EpochRecord"]["config"]["trainer"]["precision"] == "bf16-mixed"
    assert "already finished" in cli("fit", *words).out
    changed = cli("fit", *words, "--model.fold_teacher=false")
    assert changed.status == 2 and "model.fold_teacher: True -> False" in changed.err


@pytest.mark.parametrize("name", SWITCHES)
def test_values_that_are_refused(name: str) -> None:
    with pytest.raises(UserError, match=rf"DistillationModule.{name}: expected true or false, got 'yes'"):
        DistillationModule("resnet8", num_classes=10, **{name: "yes"})  # type: ignore[arg-type]
    done = cli("fit", *TINY, "--model.student=resnet8", f"--model.{name}=often")
    assert done.status == 2 and name in done.err


def test_bfloat16_without_its_instructions_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    speed._warn_once.cache_clear()
    monkeypatch.setattr(speed, "is_bf16_slow", lambda device: True)
    with pytest.warns(UserWarning, match="no instructions for bfloat16"):
        solo(Path("run"), "run", member([], taught()), epochs=1, precision="bf16-mixed")


@pytest.mark.slow
def test_a_compiled_pack_is_its_compiled_solo_runs() -> None:
    """With an odd last batch: a graph for each size, and none more in the second epoch."""
    if not speed.can_compile("cpu"):
        pytest.skip("no compiler")
    stats = torch._dynamo.utils.counters
    stats.clear()
    net, settings = taught(), {**FAST, "compile": True}
    packed(Path("pack"), {name: member(own, net, **settings) for name, own in (("vanilla", []), ("kd", ["kd"]))})
    for name in ("vanilla", "kd"):
        module = member([] if name == "vanilla" else ["kd"], net, **settings)
        solo(Path("solo"), name, module)
        assert_solo(Path("pack") / name, Path("solo") / name)
    assert not stats["graph_break"]
    assert stats["stats"]["unique_graphs"] == 6  # teacher, student and loss, of 32 and of 8 images
