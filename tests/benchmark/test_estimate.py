"""``bench plan``'s estimate: what it trains and evaluates for it, and what it prints."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from ickd_pl import get_model
from ickd_pl.benchmark.estimate import EPOCHS, EVALUATED, Timing, _Stopwatch
from ickd_pl.strategies import SP
from ickd_pl.training.pack import Pack
from tests.benchmark.helpers import quick, refused
from tests.runs.helpers import cli


def planned(**changes: Any) -> str:
    """The output of ``bench plan``; nothing else is printed."""
    outcome = cli("bench", "plan", "--config", quick(seeds=[0], **changes))
    assert outcome.status == 0 and outcome.err == "", outcome.err
    return outcome.out


def teacher(name: str = "resnet20") -> dict[str, Any]:
    torch.save(get_model(name, num_classes=10).state_dict(), "teacher.pth")
    return {"weights": {"resnet20": "teacher.pth"}}


def test_a_teacher_of_a_file_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded, original = [], Pack.training_step

    def training_step(self: Pack, *args: Any) -> Any:
        loaded.append(self.members[1].teacher.state_dict()["fc.bias"].clone())
        return original(self, *args)

    monkeypatch.setattr(Pack, "training_step", training_step)
    out = planned(teachers=teacher(), methods=["vanilla", "kd"])
    assert "teachers/resnet20/seed_0: teacher from a file or download, not trained" in out
    assert torch.equal(loaded[-1], torch.load("teacher.pth", weights_only=True)["fc.bias"])
    # One that is of no use is found out before the benchmark is run.
    assert "teacher.pth" in refused("plan", "--config", quick(seeds=[0], teachers=teacher("resnet8")))


def test_few_images_are_evaluated(monkeypatch: pytest.MonkeyPatch) -> None:
    evaluated, original = [], Pack.validation_step

    def validation_step(self: Pack, *args: Any) -> Any:
        evaluated.append(1)
        return original(self, *args)

    monkeypatch.setattr(Pack, "validation_step", validation_step)
    data = {"class_path": "Digits", "init_args": {"train_size": 64, "batch_size": 32, "eval_batch_size": 20}}
    out = planned(data=data, methods=["vanilla", "kd"])
    assert re.search(r"estimate on this machine: .+ \(\d+ seconds\)", out)
    assert len(evaluated) == EPOCHS * EVALUATED < EPOCHS * 360 / 20


def test_an_evaluation_is_scaled_to_all_its_batches() -> None:
    watch = _Stopwatch()
    watch.evaluated, watch.batches = [[9.0, 9.0], [2.0, 1.0, 1.0]], 80
    assert watch.evaluation == 2.0 + 79 * 1.0
    watch.evaluated, watch.batches = [[2.0]], 1
    assert watch.evaluation == 2.0
    # Ten epochs of 100 steps, and the predictions after the last one.
    assert Timing(start=5.0, step=0.1, evaluation=2.0, epoch=1.0).of(10, 100) == pytest.approx(5 + 10 * 13 + 2)


def test_a_loss_that_is_not_finite_is_said_in_the_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SP, "loss", lambda self, student, teacher, batch, adapter: student.logits.sum() * torch.nan)
    out = planned(methods=["vanilla", "sp"])
    assert "seconds (too little: sp stopped in the timing, by a loss that was not finite)" in out
    out = planned(methods=["sp"])
    assert re.search(r"sp/seed_0: not timed: .*infinite or NaN", out)
    assert not list(Path().rglob("*.ckpt"))
