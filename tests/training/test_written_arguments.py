"""Arguments of the module, of methods and of data modules are written so that they can be read again, or refused."""

from __future__ import annotations

import enum
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
import yaml
from torch import Tensor, nn

from ickd_pl import Batch, Digits, DistillationModule, Features, LossStrategy, UserError, get_model
from ickd_pl.checks import writable
from ickd_pl.strategies import KD  # type: ignore[attr-defined]
from tests.runs.helpers import load


class Size(enum.IntEnum):
    SMALL = 3


class Colour(enum.Enum):
    RED = 1


class Word(str, enum.Enum):
    LINEAR = "linear"


# What comes, and what is written.
WRITTEN = [
    (np.float64(1e-5), 1e-5),
    (np.float32(0.5), 0.5),
    (np.int64(3), 3),
    (np.bool_(True), True),
    (Size.SMALL, 3),
    (Word.LINEAR, "linear"),
    (Path("a/b"), "a/b"),
    ("1e-5", "1e-5"),
    (float("inf"), float("inf")),
    ([1, (np.int64(2), Path("c"))], [1, (2, "c")]),
    ({"a": np.float32(2)}, {"a": 2.0}),
    (None, None),
]
REFUSED = [
    lambda x: x,
    object(),
    torch.ones(1),
    np.ones(2),
    {1, 2},
    {1: 2},
    Colour.RED,
    float("nan"),
    [float("nan")],
    1j,
]


class AnyArgument(LossStrategy):
    """A method with an argument of any type."""

    def __init__(self, thing: Any = None, weight: float = 1.0) -> None:
        self.thing, self.weight = thing, weight

    def loss(self, student: Features, teacher: Features, batch: Batch, adapter: nn.Module | None) -> Tensor:
        return (student.logits - teacher.logits).square().mean()


class AnyData(Digits):
    def __init__(self, thing: Any = None, **settings: Any) -> None:
        super().__init__(**settings)
        self.save_hyperparameters(logger=False)


def module(**settings: Any) -> DistillationModule:
    return DistillationModule("resnet8", num_classes=10, **settings)


def trainer() -> pl.Trainer:
    return pl.Trainer(
        max_epochs=1, limit_train_batches=1, limit_val_batches=0, accelerator="cpu", logger=False,
        enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False,
    )  # fmt: skip


@pytest.mark.parametrize(("value", "written"), WRITTEN, ids=str)
def test_a_written_value_is_read_again(value: Any, written: Any, tmp_path: Path) -> None:
    found = writable("x", value)
    assert found == written and type(found) is type(written)
    torch.save({"x": found}, tmp_path / "x.ckpt")
    assert load(tmp_path / "x.ckpt")["x"] == written
    assert _lists(yaml.safe_load(yaml.safe_dump(_lists(found)))) == json.loads(json.dumps(found)) == _lists(written)


def _lists(value: Any) -> Any:
    """JSON and YAML have no tuples."""
    return [_lists(v) for v in value] if isinstance(value, list | tuple) else value


@pytest.mark.parametrize("value", REFUSED, ids=lambda value: type(value).__name__)
def test_what_cannot_be_written_is_refused_before_training(value: Any) -> None:
    taught = get_model("resnet8", 10).eval()
    with pytest.raises(
        UserError, match=r"^AnyArgument\.thing.* is .*which the record of a run cannot hold: give numbers"
    ):
        module(teacher=taught, strategies=[AnyArgument(value)])
    with pytest.raises(
        UserError, match=r"^AnyData\.thing.* is .*: give numbers or strings, or leave it out: self\.hparams\.pop"
    ):
        trainer().fit(module(), AnyData(value, train_size=20))


def test_a_checkpoint_with_such_arguments_is_loaded() -> None:
    taught = get_model("resnet8", 10).eval()
    own = module(
        teacher=taught,
        strategies=[AnyArgument(Path("a") / "b"), KD(weight=np.float64(0.5))],
        lr=np.float64(0.1),
        milestones=(1, 2),
    )
    run = trainer()
    run.fit(own, AnyData(Path("here"), train_size=20, batch_size=np.int64(10)))
    run.save_checkpoint("run.ckpt")
    content = load(Path("run.ckpt"))
    assert content["hyper_parameters"]["strategies"][0]["init_args"]["thing"] == "a/b"
    data = content["ickd_pl"]["data"]["init_args"]
    assert (data["thing"], data["batch_size"], type(data["batch_size"])) == ("here", 10, int)
    again = DistillationModule.load_from_checkpoint("run.ckpt", teacher=taught)
    assert dict(again.hparams) == dict(own.hparams) and again.strategies[1].weight == 0.5
