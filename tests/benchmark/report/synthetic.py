"""Results folders like those of a benchmark, without training."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from ickd_pl.benchmark.report.results import Pair

PAIRS = {
    "resnet20_resnet8": ("resnet20", "resnet8"),
    "resnet56_resnet20": ("resnet56", "resnet20"),
    "resnet32x4_resnet8x4": ("resnet32x4", "resnet8x4"),
    "wrn_40_2_wrn_40_1": ("wrn_40_2", "wrn_40_1"),
}
TABLE = ["vanilla", "kd", "fitnet", "at", "sp", "cc", "vid", "rkd", "pkt", "fsp", "nst", "ickd", "ickd_kl"]


def plan(
    folder: Path,
    pairs: Iterable[str] = ("resnet20_resnet8",),
    methods: Iterable[str] = ("vanilla", "kd", "ickd"),
    seeds: Iterable[int] = (0, 1, 2),
    epochs: int = 6,
    data: str = "Digits",
    name: str = "synthetic",
) -> Path:
    """Write only benchmark.yaml: a benchmark without results."""
    folder.mkdir(parents=True, exist_ok=True)
    settings = {
        "name": name,
        "data": {"class_path": data, "init_args": {}},
        "pairs": list(pairs),
        "methods": list(methods),
        "seeds": list(seeds),
        "trainer": {"max_epochs": epochs, "precision": "32-true"},
        "model": {"milestones": [4]},
        "pack": True,
        "teachers": {},
    }
    (folder / "benchmark.yaml").write_text(yaml.safe_dump(settings, sort_keys=False))
    return folder


def cell(
    folder: Path,
    pair: str | None,
    method: str | None,
    seed: int,
    correct: np.ndarray[Any, Any] | None = None,
    accuracy: float | None = None,
    networks: tuple[str, str] | None = None,
    curve: Mapping[int, float] | None = None,
    **changes: Any,
) -> Path:
    """Write one cell; if ``pair`` is None, of the teacher network ``method``.

    Args:
        folder: the results folder.
        pair: a name of PAIRS, or any with ``networks``.
        method: the method.
        seed: the seed.
        correct: which test images are predicted right; None: no predictions.npz.
        accuracy: in percent; default: that of ``correct``.
        networks: teacher and student.
        curve: accuracy by epoch, for metrics.csv.
        changes: further fields of result.json.
    """
    if pair is None:
        path = folder / "cells" / "teachers" / str(method) / f"seed_{seed}"
        who = {"kind": "teacher", "pair": None, "teacher": method, "student": None, "method": None, "seed": seed}
    else:
        teacher, student = networks or PAIRS[pair]
        path = folder / "cells" / pair / str(method) / f"seed_{seed}"
        who = {"kind": "student", "pair": pair, "teacher": teacher, "student": student, "method": method, "seed": seed}
    path.mkdir(parents=True, exist_ok=True)
    if accuracy is None:
        accuracy = 100 * float(correct.mean()) if correct is not None else 90.0
    result: dict[str, Any] = {
        "cell": who,
        "status": "done",
        "reason": None,
        "data": "digits",
        "split": "test",
        "num_test": len(correct) if correct is not None else 100,
        "acc1_last": accuracy,
        "acc1_best": accuracy + 0.3,
        "best_epoch": 5,
        "acc5_last": 99.0,
        "train_acc1_last": 95.0,
        "epochs": 6,
        "parameters": 78042,
        "seconds": 36.0,
        "images_per_second": 1200.0,
        "packed_with": [],
        "device": "cpu (two cores)",
        "precision": "32-true",
        "versions": {"python": "3.11.9", "torch": "2.9.0", "pytorch_lightning": "2.6.6", "ickd_pl": "0.1.0"},
        "config": {},
        "recipe": {},
        "code_hash": "c0de" * 16,
        "data_hash": "da7a" * 16,
        "teacher_hash": None if pair is None else "7eac" * 16,
        "accepted_code": False,
        "chosen_on_validation": None,
        **changes,
    }
    (path / "result.json").write_text(json.dumps(result))
    if correct is not None:
        label = np.arange(len(correct), dtype=np.int16) % 10
        np.savez(path / "predictions.npz", predicted=np.where(correct, label, label + 1).astype(np.int16), label=label)
    if curve is not None:
        lines = ["epoch,loss/total,test/acc1,seconds", "0,1.0,99.9,1.0"]  # epoch 0: the end of a first stage
        (path / "metrics.csv").write_text("\n".join([*lines, *(f"{e},1.0,{a},1.0" for e, a in curve.items()), ""]))
    return path


def fill(
    folder: Path,
    pairs: Iterable[str],
    methods: Iterable[str],
    seeds: Iterable[int],
    num_test: int = 500,
    epochs: int = 6,
    base: float = 70.0,
    **changes: Any,
) -> None:
    """Fill a planned folder: images are hard or easy for all networks, methods differ a little, seeds less."""
    random = np.random.default_rng(0)
    ease = random.normal(size=num_test)
    for p, pair in enumerate(pairs):
        drop = 0.9 * p
        teacher = PAIRS[pair][0]
        right = _right(random, ease, base + 4 - drop)
        curve = _grown(random, 100 * right.mean(), epochs)
        cell(folder, None, teacher, 0, right, curve=curve, epochs=epochs, **changes)
        for m, method in enumerate(methods):
            for seed in seeds:
                right = _right(random, ease, base - drop + 1.0 * np.sin(m) + random.normal(0, 0.2))
                curve = _grown(random, 100 * right.mean(), epochs)
                cell(folder, pair, method, seed, right, curve=curve, epochs=epochs, **changes)


def _right(random: np.random.Generator, ease: np.ndarray[Any, Any], percent: float) -> np.ndarray[Any, Any]:
    score = ease + 0.4 * random.normal(size=len(ease))
    return score > np.quantile(score, 1 - percent / 100)


def _grown(random: np.random.Generator, end: float, epochs: int) -> dict[int, float]:
    """A curve that rises, fluctuates, and stabilises in the last third."""
    steps = np.arange(1, epochs + 1) / epochs
    shake = random.normal(0, 2.0, epochs) * (steps < 0.63)
    values = (end - 8 * (steps < 0.63)) * (1 - 0.8 * np.exp(-8 * steps)) + shake
    values[-1] = end
    return {e + 1: round(float(v), 3) for e, v in enumerate(values)}


def pair_of(name: str) -> Pair:
    return Pair(name, *PAIRS[name])
