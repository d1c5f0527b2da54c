"""What every method keeps, on a tiny pair. The methods are discovered: a new one is tested by being there."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
import yaml

from ickd_pl import Digits, DistillationModule, IncompatiblePair, LossStrategy, get_model
from ickd_pl.data.batch import Batch
from ickd_pl.seeding import seeded
from ickd_pl.strategies import discover, from_spec
from ickd_pl.strategies.components.negatives import ClassTable

# At least so many; raised with every method that lands.
METHODS_AT_LEAST = 30
SAMPLES = 40
ROOT = Path(__file__).parents[2]

METHODS = discover()
each_method = pytest.mark.parametrize("name", sorted(METHODS))


def strategy(name: str) -> LossStrategy:
    """A method with its defaults; a first stage is cut to one epoch."""
    cls = METHODS[name]
    return cls(pretrain_epochs=1) if cls().pretrain_epochs else cls()  # type: ignore[call-arg]


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of a resnet8 that is not the student's start."""
    path = tmp_path_factory.mktemp("teacher") / "resnet8.pth"
    with seeded("contract teacher"):
        torch.save(get_model("resnet8", 10).state_dict(), path)
    return path


def module(name: str, weights: Path, **kwargs: Any) -> DistillationModule:
    settings = {
        "student": "resnet8",
        "teacher": "resnet8",
        "teacher_weights": weights,
        "num_classes": 10,
        "num_samples": SAMPLES,
    }
    built = DistillationModule(**{**settings, "strategies": [strategy(name)], **kwargs})
    fill_labels(built)
    return built


def fill_labels(built: DistillationModule) -> None:
    """A method with a table of labels gets them outside a fit as it would inside one."""
    for part in built.modules():
        if isinstance(part, ClassTable):
            part.fill(torch.arange(SAMPLES) % 10)


def batch(size: int = 8) -> Batch:
    generator = torch.Generator().manual_seed(1)
    label = torch.arange(size) % 10
    return Batch(torch.randn(size, 3, 32, 32, generator=generator), label, torch.arange(size))


def trainer(tmp_path: Path, epochs: int, **kwargs: Any) -> pl.Trainer:
    quiet = {
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
    }
    return pl.Trainer(
        max_epochs=epochs, accelerator="cpu", default_root_dir=tmp_path, limit_val_batches=0, **{**quiet, **kwargs}
    )


def data() -> Digits:
    return Digits(batch_size=16, train_size=SAMPLES)


def test_methods_are_found() -> None:
    assert len(METHODS) >= METHODS_AT_LEAST, sorted(METHODS)


@each_method
def test_files_and_names_agree(name: str) -> None:
    cls = METHODS[name]
    assert cls.__name__.lower() == name
    config = yaml.safe_load((ROOT / f"configs/methods/{name}.yaml").read_text())
    assert "ce_weight" in config["model"], "a stacked file keeps the values that it does not set"
    assert config["model"]["strategies"][0]["class_path"] == cls.__name__
    assert (ROOT / f"tests/strategies/test_{name}.py").is_file()


@each_method
def test_yaml_round_trip(name: str) -> None:
    first = strategy(name)
    again = from_spec(yaml.safe_load(yaml.safe_dump(first.spec())))
    assert type(again) is type(first)
    assert vars(again) == vars(first)


@each_method
def test_loss_is_a_finite_scalar_and_its_gradients_arrive(name: str, weights: Path) -> None:
    built = module(name, weights)
    reached: set[str] = set()
    for first_stage in (True, False) if built.stages.epochs else (False,):
        built.stages.epoch = 0 if first_stage else None
        built.zero_grad()
        total, terms, _ = built.losses(batch())
        assert total.shape == () and total.isfinite() and total.dtype == torch.float32
        assert all(term.shape == () and term.isfinite() for term in terms.values())
        total.backward()
        for key, parameter in built.adapters.named_parameters():
            if parameter.grad is not None and parameter.grad.abs().sum() > 0:
                reached.add(key)
    silent = {key for key, _ in built.adapters.named_parameters()} - reached
    # A bias in front of batch statistics has no effect: its gradient is zero up to rounding, never exactly.
    assert not silent, f"adapter parameters without a gradient: {silent}"
    assert all(p.grad is not None for p in built.student.parameters())
    assert built.teacher is not None and all(p.grad is None for p in built.teacher.parameters())


@each_method
def test_term_is_alive(name: str, weights: Path) -> None:
    """Weight 0 is plain cross entropy bit for bit; with its weight the method changes the student's gradient."""
    bare = module(name, weights, strategies=[])
    strategy(name).prepare(bare.student)
    plain = student_gradient(bare)
    silenced = module(name, weights)
    silenced.strategies[0].weight = 0.0
    assert torch.equal(student_gradient(silenced), plain)
    alive = [student_gradient(module(name, weights))]
    if silenced.stages.epochs:  # FSP and AB teach the student in the first stage only
        first = module(name, weights)
        first.stages.epoch = 0
        alive.append(student_gradient(first))
    assert any(gradient.shape == plain.shape and not torch.equal(gradient, plain) for gradient in alive)


def student_gradient(built: DistillationModule) -> torch.Tensor:
    """One vector; zeros where no gradient arrives."""
    built.losses(batch())[0].backward()
    return torch.cat(
        [(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in built.student.parameters()]
    )


@each_method
@pytest.mark.parametrize("dtype", ["bf16", "float64"])
def test_precisions(name: str, dtype: str, weights: Path) -> None:
    built = module(name, weights)
    images = batch()
    if dtype == "bf16":
        with torch.autocast("cpu", torch.bfloat16):
            total, terms, _ = built.losses(images)
        assert total.dtype == torch.float32
    else:
        built = built.double()
        total, terms, _ = built.losses(images._replace(image=images.image.double()))
        assert terms[name].dtype == torch.float64
    total.backward()
    assert total.isfinite()
    assert all(p.grad is None or p.grad.isfinite().all() for p in built.parameters())


@each_method
@pytest.mark.parametrize("teacher", ["resnet8x4", "vgg8", "wrn_16_2"])
def test_unequal_pairs_work_or_are_refused(name: str, teacher: str) -> None:
    try:
        built = DistillationModule(
            "resnet8", get_model(teacher, 10), strategies=[strategy(name)], num_classes=10, num_samples=SAMPLES
        )
    except IncompatiblePair as error:
        assert "student resnet8 " in str(error) and f"teacher {teacher}:" in str(error)
        assert METHODS[name].__name__ in str(error)
        return
    fill_labels(built)
    total, _, _ = built.losses(batch(4))
    total.backward()
    assert total.isfinite()


@each_method
def test_fit_checkpoint_load_and_resume(name: str, weights: Path, tmp_path: Path) -> None:
    straight = module(name, weights)
    teacher = {key: value.clone() for key, value in straight.teacher.state_dict().items()}  # type: ignore[union-attr]
    run = trainer(tmp_path, epochs=2)
    run.fit(straight, data())
    run.save_checkpoint(tmp_path / "straight.ckpt", weights_only=False)

    # The teacher: same parameters and buffers as in its file, eval mode, and not in the checkpoint.
    straight.prepare_teacher()
    assert straight.teacher is not None and not straight.teacher.training
    file = torch.load(weights, weights_only=True)
    assert all(torch.equal(value, file[key]) for key, value in straight.teacher.state_dict().items())
    assert teacher.keys() == file.keys()
    content = torch.load(tmp_path / "straight.ckpt", weights_only=True)
    assert not [key for key in content["state_dict"] if key.startswith("teacher.")]

    loaded = DistillationModule.load_from_checkpoint(tmp_path / "straight.ckpt", weights_only=True)
    straight.cpu().eval(), loaded.eval()
    assert torch.equal(straight.losses(batch())[0], loaded.losses(batch())[0])

    # Stopped after the first epoch (of each kind) and continued: the same weights and momentum.
    half = trainer(tmp_path, epochs=1)
    half.fit(module(name, weights), data())
    half.save_checkpoint(tmp_path / "half.ckpt", weights_only=False)
    rest = trainer(tmp_path, epochs=2)
    resumed = module(name, weights)
    rest.fit(resumed, data(), ckpt_path=tmp_path / "half.ckpt", weights_only=True)
    ours, theirs = resumed.state_dict(), content["state_dict"]
    assert all(torch.equal(ours[key], value) for key, value in theirs.items())
    momentum, expected = rest.optimizers[0].state_dict()["state"], content["optimizer_states"][0]["state"]
    assert momentum.keys() == expected.keys()
    assert all(torch.equal(momentum[i]["momentum_buffer"], expected[i]["momentum_buffer"]) for i in expected)


@pytest.mark.ddp
def test_two_ranks_end_equal(weights: Path, tmp_path: Path) -> None:
    """One launch takes all methods in turn; ``ddp_contract.py`` compares the ranks' weights."""
    script = Path(__file__).with_name("ddp_contract.py")
    done = subprocess.run(
        [sys.executable, str(script), str(weights), str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert sorted(done.stdout.split("equal: ")[1].split("\n")[0].split(",")) == sorted(METHODS)
