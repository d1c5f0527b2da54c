"""Reading a results folder."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml

from ickd_pl.benchmark.report.notes import notes
from ickd_pl.benchmark.report.results import read_results
from ickd_pl.benchmark.report.summary import mean_curve, summarise, why_not_compared
from ickd_pl.errors import UserError
from tests.benchmark.report.synthetic import cell, plan

PAIR = "resnet20_resnet8"
RIGHT = np.arange(100) % 10 < 7


def test_every_planned_cell_is_known_before_anything_is_done(tmp_path: Path) -> None:
    results = read_results(plan(tmp_path, methods=["kd", "ickd"], seeds=[0, 5]))
    assert [(r.method, r.seed, r.state) for r in results.runs] == [
        (None, None, "missing"),
        ("kd", 0, "missing"),
        ("kd", 5, "missing"),
        ("ickd", 0, "missing"),
        ("ickd", 5, "missing"),
    ]
    assert (results.pairs[0].teacher, results.pairs[0].student) == ("resnet20", "resnet8")
    assert results.data == "digits"


def test_states(tmp_path: Path) -> None:
    plan(tmp_path, methods=["kd"], seeds=range(5))
    cell(tmp_path, PAIR, "kd", 0, RIGHT)
    cell(tmp_path, PAIR, "kd", 1, status="failed", reason="loss/kd became nan", acc1_last=None)
    cell(tmp_path, PAIR, "kd", 2, status="refused", reason="channels", acc1_last=None)
    (tmp_path / "cells" / PAIR / "kd" / "seed_3" / "checkpoints").mkdir(parents=True)
    runs = read_results(tmp_path).of(PAIR, "kd")
    assert [r.state for r in runs] == ["done", "failed", "refused", "unfinished", "missing"]
    assert [r.reason for r in runs][1:3] == ["loss/kd became nan", "channels"]
    result = runs[0].result
    assert result is not None and result.acc1_last == 70.0 and result.packed_with == []


def test_results_outside_the_plan_are_shown_and_not_counted(tmp_path: Path) -> None:
    plan(tmp_path, methods=["kd"], seeds=[0])
    cell(tmp_path, PAIR, "kd", 0, RIGHT)
    cell(tmp_path, PAIR, "at", 0, ~RIGHT)
    cell(tmp_path, PAIR, "kd", 9, ~RIGHT)
    summary = summarise(read_results(tmp_path))
    extra = [(r.method, r.seed) for r in summary.results.runs if not r.planned]
    assert sorted(map(str, extra)) == ["('at', 0)", "('kd', 9)"]
    last = summary.entries[PAIR, "kd"].last
    assert last is not None and (last.mean, last.n) == (70.0, 1)


def test_results_in_subfolders_of_a_cell_are_ignored(tmp_path: Path) -> None:
    plan(tmp_path, methods=["kd"], seeds=[0])
    path = cell(tmp_path, PAIR, "kd", 0, RIGHT)
    shutil.copytree(path, path / "candidates" / "kd" / "seed_0")
    assert len(read_results(tmp_path).runs) == 2


def test_a_pair_of_ones_own_takes_its_networks_from_its_results(tmp_path: Path) -> None:
    plan(tmp_path, pairs=["mine", "unknown"], methods=["kd"], seeds=[0])
    cell(tmp_path, "mine", "kd", 0, RIGHT, networks=("big", "small"))
    pairs = read_results(tmp_path).pairs
    assert (pairs[0].teacher, pairs[0].student) == ("big", "small")
    assert pairs[1].student == "unknown"


def test_no_benchmark(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"not a results folder of a benchmark: expected .*benchmark\.yaml"):
        read_results(tmp_path)


@pytest.mark.parametrize("text", ["a: [", "- 1", "pairs: [a]\nmethods: kd\nseeds: [0]\n", "\x00"])
def test_damaged_plan(tmp_path: Path, text: str) -> None:
    (tmp_path / "benchmark.yaml").write_text(text)
    with pytest.raises(UserError, match=r"benchmark\.yaml is damaged"):
        read_results(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"status": "perfect"}, "status is 'perfect'"),
        ({"acc1_last": "92"}, "acc1_last is '92'"),
        ({"acc1_last": float("nan")}, "acc1_last is nan"),
        ({"acc1_last": None}, "no acc1_last"),
        ({"num_test": True}, "num_test is True"),
        ({"versions": []}, "versions is"),
        ({"cell": None}, "cell is None, expected a mapping"),
        ({"cell": {"kind": "student", "pair": PAIR, "method": "kd", "seed": 1, "teacher": "t"}}, "is stored elsewhere"),
    ],
)
def test_damaged_result_names_the_file(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    plan(tmp_path, methods=["kd"], seeds=[0])
    path = cell(tmp_path, PAIR, "kd", 0, RIGHT) / "result.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    with pytest.raises(UserError, match=message) as caught:
        read_results(tmp_path)
    assert str(path) in str(caught.value) and "move" in str(caught.value)


@pytest.mark.parametrize("text", ["", '{"cell": ', "[]", "\udcff"])
def test_cut_result(tmp_path: Path, text: str) -> None:
    plan(tmp_path, methods=["kd"], seeds=[0])
    path = cell(tmp_path, PAIR, "kd", 0, RIGHT) / "result.json"
    path.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(UserError, match=r"result\.json is damaged"):
        read_results(tmp_path)


@pytest.mark.parametrize("damage", ["cut", "short", "pickle"])
def test_damaged_predictions_name_the_file(tmp_path: Path, damage: str) -> None:
    plan(tmp_path, methods=["kd", "ickd"], seeds=[0])
    cell(tmp_path, PAIR, "kd", 0, RIGHT)
    path = cell(tmp_path, PAIR, "ickd", 0, RIGHT) / "predictions.npz"
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:60])
    elif damage == "short":
        np.savez(path, predicted=np.zeros(5, np.int16), label=np.zeros(5, np.int16))
    else:
        np.savez(path, predicted=np.array([{}], dtype=object), label=np.array([{}], dtype=object))
    with pytest.raises(UserError, match=r"ickd/seed_0/predictions\.npz is damaged"):
        summarise(read_results(tmp_path))


def test_curves_average_what_all_seeds_have(tmp_path: Path) -> None:
    a = cell(tmp_path, PAIR, "kd", 0, curve={1: 50.0, 2: 60.0, 3: 65.0})
    b = cell(tmp_path, PAIR, "kd", 1, curve={1: 54.0, 2: 62.0})
    with (b / "metrics.csv").open("a") as file:
        file.write("3,1.0")  # cut short
    assert mean_curve([a, b]) == {1: 52.0, 2: 61.0}
    assert mean_curve([]) == {}


@pytest.mark.parametrize(
    "line", ["1e400,1.0,50.0", f"2,{'x' * 200_000},1.0", "2,1.0,1e308", "3,1.0,nan", "3,1.0,1e999"]
)
def test_a_line_of_a_curve_that_cannot_be_read_is_left_out(tmp_path: Path, line: str) -> None:
    path = cell(tmp_path, PAIR, "kd", 0, curve={1: 50.0})
    with (path / "metrics.csv").open("a") as file:
        file.write(f"{line},1.0\n")
    assert mean_curve([path]) == {1: 50.0}


@pytest.mark.parametrize(
    ("data", "changes", "why"),
    [
        ("digits", {}, "for cifar100, these for digits"),
        ("cifar100", {"epochs": 12}, "for 240 epochs, these for 12"),
        ("cifar100", {"num_test": 100}, "for 10,000 test images, these for 100"),
        ("cifar100", {"split": "val"}, "validation split"),
        ("cifar100", {}, None),
    ],
)
def test_published_figures_are_compared_where_they_can_be(
    tmp_path: Path, data: str, changes: dict[str, object], why: str | None
) -> None:
    plan(tmp_path, pairs=["resnet56_resnet20"], methods=["kd"], seeds=[0], epochs=240, data="CIFAR100")
    cell(
        tmp_path,
        "resnet56_resnet20",
        "kd",
        0,
        accuracy=71.0,
        **{"data": data, "epochs": 240, "num_test": 10_000} | changes,
    )
    summary = summarise(read_results(tmp_path))
    found = why_not_compared(summary.results)
    entry = summary.entries["resnet56_resnet20", "kd"]
    if why is None:
        assert found is None and entry.to_published == pytest.approx(0.34)
    else:
        assert found is not None and why in found
        assert entry.to_published is None
    assert (entry.published is None) == (data != "cifar100")


def test_a_part_of_every_epoch_is_not_set_against_published_figures(tmp_path: Path) -> None:
    plan(tmp_path, pairs=["resnet56_resnet20"], methods=["kd"], seeds=[0], epochs=240, data="CIFAR100")
    cell(tmp_path, "resnet56_resnet20", "kd", 0, accuracy=71.0, data="cifar100", epochs=240, num_test=10_000)
    path = tmp_path / "benchmark.yaml"
    settings = yaml.safe_load(path.read_text())
    assert why_not_compared(read_results(tmp_path)) is None
    path.write_text(yaml.safe_dump({**settings, "trainer": {**settings["trainer"], "limit_train_batches": 0.1}}))
    assert "these on a part of them" in str(why_not_compared(read_results(tmp_path)))


def test_a_fetched_teacher_has_no_epochs_and_hinders_no_comparison(tmp_path: Path) -> None:
    plan(tmp_path, pairs=["resnet56_resnet20"], methods=["kd"], seeds=[0], epochs=240, data="CIFAR100")
    about = {"data": "cifar100", "num_test": 10_000}
    cell(tmp_path, None, "resnet56", 0, accuracy=72.3, epochs=None, seconds=None, images_per_second=None, **about)
    cell(tmp_path, "resnet56_resnet20", "kd", 0, accuracy=71.0, epochs=240, **about)
    entry = summarise(read_results(tmp_path)).entries["resnet56_resnet20", None]
    assert entry.to_published == pytest.approx(-0.04) and entry.hours is None


def test_a_seed_that_only_one_method_has_takes_no_part_in_the_difference(tmp_path: Path) -> None:
    plan(tmp_path, methods=["kd", "ickd"], seeds=[0, 1])
    cell(tmp_path, PAIR, "kd", 0, RIGHT)
    cell(tmp_path, PAIR, "ickd", 0, np.arange(100) % 10 < 8)
    cell(tmp_path, PAIR, "ickd", 1, np.ones(100, bool))
    c = summarise(read_results(tmp_path)).entries[PAIR, "ickd"].against["kd"]
    assert c.per_seed == (10.0,)
    assert c.images is not None and c.images.low < 10 < c.images.high


def test_predictions_that_contradict_their_result_are_reported(tmp_path: Path) -> None:
    plan(tmp_path, methods=["kd", "ickd", "at"], seeds=[0])
    cell(tmp_path, PAIR, "kd", 0, RIGHT)
    cell(tmp_path, PAIR, "ickd", 0, RIGHT, accuracy=90.0)
    path = cell(tmp_path, PAIR, "at", 0, RIGHT)
    label = np.zeros(100, np.int16)
    np.savez(path / "predictions.npz", predicted=label, label=label)
    summary = summarise(read_results(tmp_path))
    assert any("70.00 %, its result.json 90.00 %" in text for text in summary.oddities)
    assert any("at/seed_0 was tested on different images" in text for text in summary.oddities)
    assert summary.entries[PAIR, "at"].against["kd"].images is None


def test_runs_that_were_continued_elsewhere_are_in_the_notes(tmp_path: Path) -> None:
    """Once for all runs of the same pieces, with what differs between them."""
    plan(tmp_path, methods=["kd", "ickd", "at"], seeds=[0])
    same = {"precision": "32-true", "last": 3}
    pieces = [
        {**same, "device": "cuda (H100)", "versions": {"torch": "2.11.0", "python": "3.12"}, "first": 1},
        {**same, "device": "cpu", "versions": {"torch": "2.14.1", "python": "3.12"}, "first": 3},
    ]
    for method in ("kd", "ickd", "at"):
        file = cell(tmp_path, PAIR, method, 0, RIGHT) / "result.json"
        if method != "at":
            file.write_text(json.dumps({**json.loads(file.read_text()), "pieces": pieces}))
    (note,) = [text for text in notes(summarise(read_results(tmp_path))) if "one place" in text]
    assert note.startswith("Not trained in one place: 2 runs (") and note.endswith(
        "): epochs 1 to 3 on cuda (H100), torch 2.11.0; epochs 3 to 3 on cpu, torch 2.14.1."
    )
