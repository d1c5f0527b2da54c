"""Teachers that a benchmark fetches: tested before training and compared with their published accuracy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torchvision import datasets

from ickd_pl.benchmark import cells
from ickd_pl.data import CIFAR100
from tests.data.cifar_source import make_source
from tests.runs.helpers import Outcome, cli
from tests.teachers.mirror import FILE, Mirror, manifest, serving, sha256, weights

HERE = Path("checkpoints") / FILE.format("resnet20")
RESULT = Path("out/cells/teachers/resnet20/seed_0/result.json")


@pytest.fixture(autouse=True)
def cifar(monkeypatch: pytest.MonkeyPatch) -> str:
    """A synthetic CIFAR-100 whose 200 test images count as the published 10,000."""
    monkeypatch.setattr(CIFAR100, "num_available", 200)
    monkeypatch.setattr("ickd_pl.benchmark.teachers.NUM_TEST", 200)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    return str(make_source(Path("src") / "cifar-100-python", datasets.CIFAR100, "fine_labels", 100, monkeypatch))


def bench(cifar: str, mirror: Mirror, published: float, normalization: Any = "auto", **teachers: Any) -> Outcome:
    """One epoch of a vanilla student with a fetched teacher of the given published accuracy."""
    Path("checkpoints").mkdir(exist_ok=True)
    path = manifest({"resnet20": [f"{mirror.url}/a.pth"]}, path="checkpoints/manifest.json")
    content = json.loads(path.read_text())
    content["teachers"]["resnet20"]["published_acc1"] = published
    path.write_text(json.dumps(content))
    mirror.files["/a.pth"] = weights("resnet20")
    benchmark = {
        "data": {"class_path": "CIFAR100", "init_args": {"root": "data", "archive": cifar, "batch_size": 200}},
        "pairs": ["resnet20_resnet8"],
        "methods": ["vanilla", "kd"] if normalization != "auto" else ["vanilla"],
        "seeds": [0],
        "trainer": {"max_epochs": 1, "enable_progress_bar": False, "enable_model_summary": False},
        "model": {"milestones": [], "teacher_normalization": normalization},
        "teachers": {"get": "fetch", **teachers},
    }
    Path("b.yaml").write_text(yaml.safe_dump(benchmark))
    return cli("bench", "run", "--config", "b.yaml", "--output", "out")


def test_a_fetched_teacher_as_good_as_published_is_verified(cifar: str) -> None:
    with serving() as mirror:
        outcome = bench(cifar, mirror, published=0.5)
    assert outcome.status == 0, outcome.err
    result = json.loads(RESULT.read_text())
    assert result["status"] == "done" and result["weights"] == str(HERE)
    entry = json.loads(Path("checkpoints/manifest.json").read_text())["teachers"]["resnet20"]
    assert entry["status"] == "verified" and entry["measured_acc1"] == round(result["acc1_last"], 2)
    assert entry["sha256"] == sha256(HERE.read_bytes())
    assert f"resnet20: {result['acc1_last']:.2f} percent on the test images of cifar100, published are 0.50" in (
        outcome.out
    )


def test_a_fetched_teacher_below_the_published_accuracy_ends_the_benchmark(cifar: str) -> None:
    with serving() as mirror:
        outcome = bench(cifar, mirror, published=72.34)
        assert outcome.status == 2
        message = outcome.err.strip().splitlines()[-1]
        assert message.startswith("error: ") and "published are 72.34 (-" in message
        assert f"{HERE} is not that teacher" in message and "teachers.weights" in message
        assert not RESULT.exists() and not list(Path("out/cells").rglob("metrics.csv"))
        # As the message advises, and in the same folder.
        outcome = bench(cifar, mirror, published=72.34, weights={"resnet20": str(HERE)})
        assert outcome.status == 0, outcome.err
    assert RESULT.exists()


def test_a_teacher_from_a_file_is_not_checked(cifar: str) -> None:
    Path("mine.pth").write_bytes(weights("resnet20"))
    with serving() as mirror:
        outcome = bench(cifar, mirror, published=72.34, weights={"resnet20": "mine.pth"})
        assert outcome.status == 0, outcome.err
        assert not mirror.asked
    assert json.loads(RESULT.read_text())["weights"] == "mine.pth"


def test_a_teacher_with_its_own_mean_and_std(cifar: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is measured with them, and its students are trained with them, in a pack or alone."""
    Path("mine.pth").write_bytes(weights("resnet20"))
    own = {"mean": [0.5, 0.4, 0.3], "std": [0.5, 0.5, 0.5]}
    seen: list[list[float] | None] = []
    measuring = cells.predicted_classes

    def noted(net: Any, loader: Any, trainer: Any, images: Any) -> Any:
        seen.append(None if images is None else images(torch.zeros(1, 3, 1, 1)).flatten().tolist())
        return measuring(net, loader, trainer, images)

    monkeypatch.setattr(cells, "predicted_classes", noted)
    with serving() as mirror:
        outcome = bench(cifar, mirror, published=72.34, normalization=own, weights={"resnet20": "mine.pth"})
    assert outcome.status == 0, outcome.err
    shifts = [(mean - own["mean"][i]) / 0.5 for i, mean in enumerate(CIFAR100.known_constants[0])]
    assert seen[0] == pytest.approx(shifts, abs=1e-6) and seen[1:] == [None, None]
    stored = torch.load("out/cells/resnet20_resnet8/kd/seed_0/checkpoints/last.ckpt", weights_only=True)
    assert stored["hyper_parameters"]["teacher_normalization"] == own
