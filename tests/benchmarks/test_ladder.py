"""``benchmarks/ladder.py``: a whole tiny run, its plain loop's losses, its figures; ``accuracy_of_settings.py``."""

from __future__ import annotations

import itertools
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.runs.helpers import REPOSITORY

sys.path.insert(0, str(REPOSITORY / "benchmarks"))

import accuracy_of_settings
import ladder
from ickd_pl.data.batch import DataInfo
from ickd_pl.models.features import Features, FeatureShapes
from ickd_pl.strategies import discover
from ickd_pl.strategies.kd import kd_loss
from ladder_parts import report, rungs
from ladder_parts.contrast import NEGATIVES, Contrast, NegativesByClass
from ladder_parts.literal import METHODS, Softened
from ladder_parts.ours import usable
from ladder_parts.turns import NotHere

TINY = ["--rounds=1", "--steps=1", "--seconds=0.01", "--batch=2", "--images=100", "--threads=1"]


def solo(**found: list[float]) -> dict[str, Any]:
    """A group whose contestants took these milliseconds, by label."""
    return {
        "table": "solo",
        "pair": "resnet20_resnet8",
        "methods": ["kd"],
        "contestants": [
            {
                "label": label.replace("_", " "),
                "rivals": rungs.PLAIN if label.startswith("plain") else "",
                "given": {},
                "half": False,
                "note": "" if ms else "ended",
                "steps": 1,
                "found": [{"ms": each, "faults": 1.0, "peak": 2.0} for each in ms],
            }
            for label, ms in found.items()
        ],
    }


@pytest.mark.slow
def test_a_tiny_run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Real processes; one that cannot run does not keep the others from it; the same command measures nothing again."""
    page = Path("page.md")
    page.write_text("before\n<!-- ladder: begin -->\nold\n<!-- ladder: end -->\nafter\n", encoding="utf-8")
    here = [rungs.Contestant("plain loop", "plain"), rungs.Contestant("defaults")]
    broken = rungs.Contestant("broken", "no such kind")
    group = rungs.Group("tiny", "solo", "resnet20_resnet8", ("ickd",), (*here, broken))
    monkeypatch.setattr(ladder, "groups_of", lambda options, cuda: [group])
    words = [*TINY, "--docs=page.md", "--output=out", "--pairs=resnet20_resnet8", "--before=."]
    assert ladder.main(words) == 0
    found = json.loads(Path("out/ladder.json").read_text(encoding="utf-8"))
    contestants = {each["label"]: each for each in found["groups"]["tiny"]["contestants"]}
    for label in ("plain loop", "defaults"):
        assert len(contestants[label]["found"]) == 1, contestants[label]["note"]
        assert contestants[label]["found"][0]["ms"] > 0
    assert contestants["broken"]["note"].startswith("ended with status 1: KeyError: 'no such kind'")
    assert found["machine"]["gflop"]["resnet20_resnet8"]["ickd"] > 0.1
    text = page.read_text(encoding="utf-8")
    assert text.startswith("before\n") and text.endswith("after\n") and "old" not in text
    assert "| defaults |" in text and "Not measured: broken (ended" in text
    capsys.readouterr()
    assert ladder.main(words) == 0
    assert "0 of 1 groups to measure" in capsys.readouterr().out
    assert ladder.main([*words, "--batch=4"]) == 2
    assert "give another --output" in capsys.readouterr().err


@pytest.mark.parametrize("method", [name for name, row in METHODS.items() if row.build is not None])
def test_the_plain_loop_computes_the_same_loss(method: str) -> None:
    """With the same weights in the trainable part, a literal loss has the value of the project's."""
    generator = torch.Generator().manual_seed(0)

    def features(widths: tuple[int, int, int]) -> Features:
        sizes = zip((widths[0], *widths), (8, 8, 4, 2), strict=True)
        stem, *stages = [torch.rand(6, width, side, side, generator=generator) for width, side in sizes]
        pooled = stages[-1].mean((2, 3))
        return Features(pooled, stem, tuple(stages), stages[-1], pooled)

    student, teacher = features((4, 6, 8)), features((5, 7, 9))
    own, other = ([each.stem, *each.stages, each.pooled] for each in (student, teacher))
    build = METHODS[method].build
    assert build is not None
    part, loss = build(own, other)
    strategy = discover()[method.removesuffix("_kl")]()
    shapes = [FeatureShapes.of(name, each) for name, each in (("student", student), ("teacher", teacher))]
    adapter = strategy.build(*shapes, DataInfo(10, 100))
    if part is not None:
        assert adapter is not None
        for mine, theirs in zip(part.parameters(), adapter.parameters(), strict=True):
            theirs.data = mine.data.view(theirs.shape)
    found = strategy.loss(student, teacher, None, adapter)  # type: ignore[arg-type]
    torch.testing.assert_close(loss(own, other), found, rtol=2e-5, atol=1e-7)


def test_the_plain_loops_soft_targets_are_the_projects() -> None:
    a, b = torch.randn(5, 7), torch.randn(5, 7)
    torch.testing.assert_close(Softened()(a, b), kd_loss(a, b, 4.0))


def test_crd_scores_what_was_drawn() -> None:
    """By hand: two images, the negatives of the first are the second; the memories move to the new embeddings."""
    torch.manual_seed(0)
    contrast = Contrast(torch.zeros(2, 3), torch.zeros(2, 4), 10)
    drawn = torch.randint(10, (2, 1 + NEGATIVES))
    drawn[:, 0] = index = torch.tensor([3, 5])
    student, teacher = torch.randn(2, 3), torch.randn(2, 4)
    u, v = (embed(x).detach() for embed, x in zip(contrast.embed, (student, teacher), strict=True))
    expected, noise = 0.0, NEGATIVES / 10
    for memory, anchor in ((contrast.teacher_memory, u), (contrast.student_memory, v)):
        h = (memory[drawn] * anchor[:, None]).sum(2).div(0.07).exp()
        x = h / (h.mean() * 10)
        logs = (x[:, 0] / (x[:, 0] + noise)).log() + (noise / (x[:, 1:] + noise)).log().sum(1)
        expected -= float(logs.mean())
    moved = torch.nn.functional.normalize((contrast.student_memory[3] + u[0]) / 2, dim=0)
    assert contrast(student, teacher, index, drawn).item() == pytest.approx(expected, rel=1e-4)
    torch.testing.assert_close(contrast.student_memory[3], moved)


def test_negatives_are_of_other_classes() -> None:
    labels = np.arange(60) % 3
    drawn = NegativesByClass(labels)(4)
    assert drawn[0] == 4 and len(drawn) == 1 + NEGATIVES
    assert set(labels[drawn[1:]]) == {0, 2}


def test_figures() -> None:
    """Of rivals the fastest counts; ratios are medians over the rounds, not ratios of medians."""
    group = solo(plain_loop_0=[70.0, 66.0, 10.0], plain_loop_1=[90.0, 90.0], a5beefe=[100.0, 100.0, 100.0], lost=[])
    assert [each["label"] for each in report.best(group)] == ["plain loop 0", "a5beefe", "lost"]
    found = {"groups": {"one": group}}
    text, right = report.accepted(found)
    assert right and "| one | plain loop 0 | 66.0 | 100.0 | 0.66 | 0.66 | within 10 % |" in text
    group["contestants"][0]["found"] = [{"ms": 80.0, "faults": 0.0, "peak": 0.0}]
    text, right = report.accepted(found)
    assert not right and "off by +21 %" in text
    found |= {
        "options": {"batch": 64, "images": 100, "test_images": 10},
        "version": "v",
        "date": "today",
        "machine": {
            "name": "m", "torch": "2", "threads": 1,
            "gflop": {"resnet20_resnet8": {"kd": 0.1}},
            "peak": {"torch.float32": 128.0, "torch.bfloat16": 256.0},
        },
    }  # fmt: skip
    # 640 images a second: half of the peak; 12 million images take 5.2 hours.
    assert "| a5beefe | 100.0 | 100.0 to 100.0 | 0.80 | 640 | 1 | 2.00 | 50 % | 5.2 |" in report.as_text(found)
    report.draw(found, Path("ladder.png"))
    assert Path("ladder.png").stat().st_size > 1000


@pytest.mark.parametrize("cuda", [False, True])
def test_rungs_go_from_every_setting_off_to_all_of_them(cuda: bool) -> None:
    """Each adds one setting to the one before it."""
    steps = [set(rung.settings) for rung in rungs.solo_rungs(cuda)[:-2]]
    assert all(setting.endswith("=false") for setting in steps[0])
    assert not [setting for setting in steps[-1] if setting.endswith("=false")]
    for before, after in itertools.pairwise(steps):
        assert len(after - before) == 1 or (after == before and not cuda)
    groups = [
        *rungs.ladder_groups(rungs.PAIRS, rungs.METHODS, False, cuda),
        *rungs.scale_groups(rungs.PAIRS, False, cuda),
    ]
    assert len({group.name for group in groups}) == len(groups)


def test_settings_of_another_version_are_found() -> None:
    for settings, expected in (
        (["--model.lr=1", "--model.no_such=true"], "no model.no_such"),
        (["--config=configs/no_such.yaml"], "no configs/no_such.yaml"),
    ):
        with pytest.raises(NotHere, match=expected):
            usable(settings)
    known = ["--model.lr=1", "--trainer.precision=bf16-mixed", "--config=configs/base.yaml"]
    assert usable([*known, "--model.no_such=false"]) == known


def test_options(capsys: pytest.CaptureFixture[str]) -> None:
    for words, expected in (
        (["--rounds", "0"], "--rounds: expected a number above 0, got 0"),
        (["--docs", "no.md"], "there is no no.md"),
    ):
        with pytest.raises(SystemExit) as exit_status:
            ladder.main(words)
        assert exit_status.value.code == 2
        assert expected in capsys.readouterr().err


def test_accuracies_of_settings(capsys: pytest.CaptureFixture[str]) -> None:
    """Settings that this version lacks are left out; what is done is not done again."""
    data = ["--data", "ladder_parts.images.RandomImages", "images=100", "test_images=100", "batch_size=50"]
    words = [*data, "--epochs=1", "--teacher_epochs=1", "--output=out", "--seeds", "0", "1", "--settings"]
    assert accuracy_of_settings.main([*words, "float32"]) == 0
    first = capsys.readouterr().out
    assert "teacher: " in first and "float32: {'0': " in first
    assert accuracy_of_settings.main([*words, "float32", "bfloat16"]) == 0
    again = capsys.readouterr().out
    assert "float32: " not in again and "bfloat16: " in again
    lines = Path("out/accuracies.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["setting"] for line in lines] == ["float32", "bfloat16"]


def test_differences_are_paired_by_seed() -> None:
    found = {
        "float32": {"accuracies": {"0": 30.0, "1": 20.0}, "seconds": 1},
        "bfloat16": {"accuracies": {"0": 29.0, "1": 20.5}, "seconds": 1},
        "compile": {"accuracies": {"0": 29.0, "1": 19.5}, "seconds": 1},
    }
    text = accuracy_of_settings.table(found, [0, 1])
    assert "| bfloat16 | 29.00 | 20.50 | 24.75 | -0.25 | -1.00, +0.50 | 1 |" in text
    assert "| -0.75 (too much) | -1.00, -0.50 |" in text


def test_short_schedules_decay_at_the_recipes_parts() -> None:
    assert accuracy_of_settings.schedule(12)["model"]["milestones"] == [8, 9, 11]
    assert accuracy_of_settings.schedule(5)["model"]["milestones"] == [3, 4]
