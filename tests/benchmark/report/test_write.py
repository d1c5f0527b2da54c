"""The four report files, parsed again."""

from __future__ import annotations

import csv
import re
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest

from ickd_pl.benchmark.records import CellResult
from ickd_pl.benchmark.report import tables
from ickd_pl.benchmark.report.charts import ticks
from ickd_pl.benchmark.report.to_latex import tex
from ickd_pl.benchmark.report.write import summary_table, write_report
from ickd_pl.errors import UserError
from ickd_pl.plain import from_csv_cell
from tests.benchmark.report.reading import check_all, check_page, check_tex, report, table_of
from tests.benchmark.report.synthetic import cell, fill, plan

PAIR = "resnet20_resnet8"
HOSTILE = 'my<b>|x_1&"{}$%#~^\\'
RIGHT = np.arange(100) % 10 < 7


def test_rows_and_columns_are_those_of_the_published_table(whole: dict[str, str]) -> None:
    table = table_of(whole["md"], "Accuracy after the last epoch")
    rows = ["Method", "---", "Teacher", "Vanilla", "KD", "FitNet", "AT", "SP", "CC", "VID", "RKD", "PKT", "FSP", "NST"]
    rows += ["ICKD-C (w/o KL)", "ICKD-C (with KL)"]
    assert [re.sub("-+", "---", k) if k.startswith("--") else k for k in table] == rows
    assert table["Method"] == ["ResNet56 / ResNet20", "WRN-40-2 / WRN-40-1"]
    assert all(re.fullmatch(r"(\*\*)?\d\d\.\d\d ± \d\.\d\d(\*\*)?( [↑↓])?", c) for c in table["KD"])


def test_published_figures_and_differences(whole: dict[str, str]) -> None:
    accuracy = table_of(whole["md"], "Accuracy after the last epoch")
    figures = table_of(whole["md"], "Published figures, and the difference to them")
    mean = float(accuracy["KD"][0].strip("*")[:5])
    found = re.fullmatch(r"70\.66 \(([-+]\d+\.\d\d)\)", figures["KD"][0])
    assert found and float(found[1]) == pytest.approx(mean - 70.66, abs=0.006)
    assert figures["ICKD-C (w/o KL)"][0].startswith("71.76† (")
    assert figures["FSP"][1] == "-"  # printed as 0.00: not applicable


def test_csv_has_a_row_a_run(whole: dict[str, str]) -> None:
    rows = list(csv.DictReader(whole["csv"].splitlines()))
    assert len(rows) == 2 + 2 * 13 * 3
    kd = [r for r in rows if r["pair"] == "resnet56_resnet20" and r["method"] == "kd"]
    ickd = [r for r in rows if r["pair"] == "resnet56_resnet20" and r["method"] == "ickd"]
    assert [r["seed"] for r in kd] == ["0", "1", "2"]
    for a, b in zip(ickd, kd, strict=True):
        assert float(a["minus_kd"]) == pytest.approx(float(a["acc1_last"]) - float(b["acc1_last"]), abs=1e-4)
    assert kd[0]["published"] == "70.66" and kd[0]["published_source"] == "ICKD/Cifar100/README.md"
    assert ickd[0]["published_epoch"] == "unstated" and kd[0]["published_epoch"] == "last"
    assert kd[0]["code_hash"] == "c0de" * 16 and kd[0]["torch"] == "2.9.0"
    table = table_of(whole["md"], "Accuracy after the last epoch")
    accuracies = [float(r["acc1_last"]) for r in kd]
    assert table["KD"][0].startswith(f"{np.mean(accuracies):.2f} ± {np.std(accuracies, ddof=1):.2f}")


def test_page_is_whole_and_self_contained(whole: dict[str, str]) -> None:
    page = check_page(whole["html"])
    assert whole["html"].count("<polyline") == 2 * (14 + 13)  # in the panels, and the students in the last epochs
    assert whole["html"].count('class="own"') == 2 * 14
    assert "ResNet56 / ResNet20" in page.text and "published 70.66" not in page.text and "pub. 70.66" in page.text
    assert "prefers-color-scheme: dark" in whole["html"]
    # Both tables show the same figures.
    for row in table_of(whole["md"], "Accuracy after the last epoch").values():
        assert all(c.strip("*↑↓ ") in page.text for c in row if "±" in c)


def test_tex_is_balanced(whole: dict[str, str]) -> None:
    check_tex(whole["tex"])
    assert whole["tex"].count(r"\toprule") == whole["tex"].count(r"\bottomrule") == 5
    assert r"$\pm$" in whole["tex"] and "±" not in whole["tex"]


def test_same_results_same_bytes(tmp_path: Path) -> None:
    plan(tmp_path, methods=["vanilla", "kd"])
    fill(tmp_path, [PAIR], ["vanilla", "kd"], range(3), num_test=50)
    first = {k: v.encode() for k, v in report(tmp_path).items()}
    assert {k: v.encode() for k, v in report(tmp_path).items()} == first
    assert not list(tmp_path.glob(".*.tmp"))


def test_nothing_done_yet(tmp_path: Path) -> None:
    files = report(plan(tmp_path))
    page = check_all(files)
    assert table_of(files["md"], "Accuracy after the last epoch")["KD"] == ["missing"]
    assert "Incomplete: 0 runs are done, 10 missing" in page.text
    assert "<polyline" not in files["html"]
    assert [r["state"] for r in csv.DictReader(files["csv"].splitlines())] == ["missing"] * 10


def test_only_teachers(tmp_path: Path) -> None:
    plan(tmp_path)
    cell(tmp_path, None, "resnet20", 0, RIGHT, curve={1: 60.0, 2: 70.0})
    files = report(tmp_path)
    check_all(files)
    table = table_of(files["md"], "Accuracy after the last epoch")
    assert table["Teacher"] == ["70.00"] and table["KD"] == ["missing"]


def test_one_seed_says_so_and_claims_nothing(tmp_path: Path) -> None:
    plan(tmp_path, seeds=[0])
    for method, right in (("vanilla", RIGHT), ("kd", RIGHT), ("ickd", np.ones(100, bool))):
        cell(tmp_path, PAIR, method, 0, right, curve={1: 50.0})
    files = report(tmp_path)
    page = check_all(files)
    assert "fewer than 3 seeds: no significance is claimed" in page.text
    table = table_of(files["md"], "Accuracy after the last epoch")
    assert table["ICKD-C (w/o KL)"] == ["100.00"]  # no deviation, no arrow, not bold
    assert "too few seeds" in files["md"] and "above" not in files["md"].split("## How")[0].split("Paired")[1]


def test_three_seeds_that_agree_are_claimed_and_marked(tmp_path: Path) -> None:
    plan(tmp_path)
    for seed in range(3):
        cell(tmp_path, PAIR, "vanilla", seed, ~RIGHT)
        cell(tmp_path, PAIR, "kd", seed, RIGHT)
        cell(tmp_path, PAIR, "ickd", seed, np.ones(100, bool))
    files = report(tmp_path)
    check_all(files)
    table = table_of(files["md"], "Accuracy after the last epoch")
    assert table["ICKD-C (w/o KL)"] == ["**100.00 ± 0.00** ↑"]
    assert table["Vanilla"] == ["30.00 ± 0.00 ↓"]
    assert r"\textbf{100.00 $\pm$ 0.00} $\uparrow$" in files["tex"]
    assert files["html"].count('class="bar strong"') == 4


def test_no_run_is_dropped(tmp_path: Path) -> None:
    plan(tmp_path, methods=["kd", "fsp"], seeds=range(3))
    cell(tmp_path, PAIR, "kd", 0, RIGHT)
    cell(tmp_path, PAIR, "kd", 1, status="failed", reason="loss/kd became nan in epoch 3", acc1_last=None)
    for seed in range(3):
        cell(tmp_path, PAIR, "fsp", seed, status="refused", reason="channel counts must agree", acc1_last=None)
    files = report(tmp_path)
    page = check_all(files)
    table = table_of(files["md"], "Accuracy after the last epoch")
    assert table["KD"] == ["70.00 (1/3)"] and table["FSP"] == ["n/a"]
    for text in (page.text, files["md"], files["csv"]):
        assert "loss/kd became nan in epoch 3" in text and "channel counts must agree" in text
    states = [r["state"] for r in csv.DictReader(files["csv"].splitlines())]
    assert states == ["missing", "done", "failed", "missing", "refused", "refused", "refused"]


def test_other_code_versions_and_machines_are_marked(tmp_path: Path) -> None:
    plan(tmp_path, methods=["kd"], seeds=range(2))
    cell(tmp_path, PAIR, "kd", 0, RIGHT)
    cell(
        tmp_path,
        PAIR,
        "kd",
        1,
        RIGHT,
        accepted_code=True,
        code_hash="beef" * 16,
        device="a GPU",
        versions={"torch": "3"},
    )
    files = report(tmp_path)
    page = check_all(files)
    assert "MIXED CODE: 1 runs of different code, accepted by --accept-code (resnet20_resnet8/kd/seed_1)" in page.text
    assert "Not identical in all runs: code (2), device (2), version of ickd_pl (2)" in page.text
    assert "beefbeefbeef" in files["md"] and "other code, accepted" in files["md"]
    assert [r["accepted_code"] for r in csv.DictReader(files["csv"].splitlines())] == ["", "False", "True"]


def test_a_choice_on_the_validation_split_is_reported(tmp_path: Path) -> None:
    plan(tmp_path, methods=["kd"], seeds=[0])
    tried = [{"arguments": {"weight": 1.0}, "val_acc1": 66.1}, {"arguments": {"weight": 2.5}, "val_acc1": 67.2}]
    cell(tmp_path, PAIR, "kd", 0, RIGHT, chosen_on_validation={"arguments": {"weight": 2.5}, "candidates": tried})
    files = report(tmp_path)
    assert (
        "weight=2.5 was selected on a validation split, not on test images (weight=1.0: 66.1; weight=2.5: 67.2)"
        in files["md"]
    )


def test_cost_says_packed_or_solo(tmp_path: Path) -> None:
    plan(tmp_path, methods=["vanilla", "kd"], seeds=[0, 1])
    cell(tmp_path, PAIR, "vanilla", 0, RIGHT, seconds=1800, images_per_second=1000.0)
    cell(tmp_path, PAIR, "vanilla", 1, RIGHT, seconds=5400, images_per_second=2000.0)
    cell(tmp_path, PAIR, "kd", 0, RIGHT, packed_with=["vanilla", "at"], seconds=36)
    table = table_of(report(tmp_path)["md"], "ResNet20 / ResNet8")
    where = {name: k for k, name in enumerate(table["Method"])}
    shown = [table["Vanilla"][where[k]] for k in ("Seeds", "Hours", "Images/s", "Run as")]
    assert shown == ["2/2", "1.00", "1,500", "solo"]
    assert [table["KD"][where[k]] for k in ("Seeds", "Hours", "Run as")] == ["1/2", "0.0100", "packed (3)"]


def test_hostile_names_stay_names(tmp_path: Path) -> None:
    name = "</title><script>alert(1)</script> & 100%_$ {x}\\"
    plan(tmp_path, pairs=["a&b_c"], methods=["kd", HOSTILE], seeds=range(3), name=name)
    reason = 'said "no", <i>\nthen | stopped `x` [a](b)'
    for seed in range(3):
        cell(tmp_path, "a&b_c", "kd", seed, RIGHT, networks=("<t>&_", "s%|#"), curve={1: 1.0, 2: 2.0})
        cell(tmp_path, "a&b_c", HOSTILE, seed, ~RIGHT, networks=("<t>&_", "s%|#"), curve={1: 1.0, 2: 2.0})
    cell(tmp_path, "a&b_c", "kd", 0, status="failed", reason=reason, acc1_last=None, networks=("<t>&_", "s%|#"))
    files = report(tmp_path)
    page = check_all(files)
    assert HOSTILE in page.text and name in page.text and "<t>&_ / s%|#" in page.text
    assert len(table_of(files["md"], "Accuracy after the last epoch")) == 5
    assert "<script>" not in files["md"] and "[a](b)" not in files["md"]
    rows = list(csv.DictReader(files["csv"].splitlines(keepends=True)))
    assert {r["method"] for r in rows if r["kind"] == "student"} == {"kd", HOSTILE}
    assert reason in {r["reason"] for r in rows}


@pytest.mark.parametrize("name", ["=1+1", " =1+1", "+1", "-1", "@SUM(A1)", "\tx", "\rx"])
def test_a_name_is_not_a_formula_in_a_spreadsheet(tmp_path: Path, name: str) -> None:
    plan(tmp_path, methods=["kd", "vanilla"], seeds=[0])
    cell(tmp_path, PAIR, "kd", 0, status="failed", reason=name, acc1_last=None)
    cell(tmp_path, PAIR, "vanilla", 0, RIGHT, packed_with=[name], device=name, seconds=-36.0)
    write_report(tmp_path)
    with (tmp_path / "report.csv").open(newline="") as file:
        rows = {r["method"]: r for r in csv.DictReader(file)}
    assert rows["kd"]["reason"] == rows["vanilla"]["device"] == rows["vanilla"]["packed_with"]
    assert rows["kd"]["reason"] == "'" + name.replace("\r", "\\x0d")  # a lone carriage return would end the row
    assert from_csv_cell(rows["kd"]["reason"]) == name
    assert rows["vanilla"]["seconds"] == "-36.0" and rows["vanilla"]["hours"] == "-0.01"


def test_every_field_of_a_result_is_a_column(tmp_path: Path) -> None:
    plan(tmp_path, methods=["kd"], seeds=[0])
    cell(tmp_path, PAIR, "kd", 0, RIGHT, versions={"pytorch-lightning": "2.6.6"})
    kd = list(csv.DictReader(report(tmp_path)["csv"].splitlines()))[-1]
    shown = {f.name for f in fields(CellResult)} - {
        "cell",
        "status",
        "reason",
        "config",
        "recipe",
        "versions",
        "weights",
        "measured",
        "pieces",
    }
    assert shown <= kd.keys() and kd["parameters"] == "78042" and kd["pytorch_lightning"] == "2.6.6"


def test_a_figure_that_only_some_results_have(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It needs no field of its own: a column of report.csv, and one of a table by a line there."""
    plan(tmp_path, methods=["kd", "at"], seeds=[0, 1])
    cell(tmp_path, PAIR, "kd", 0, RIGHT, measured={"gigaflops": 1.5})
    cell(tmp_path, PAIR, "kd", 1, RIGHT, measured={"gigaflops": 2.5})
    cell(tmp_path, PAIR, "at", 0, RIGHT)
    monkeypatch.setattr(tables, "COST", [tables.Column("GFLOP", lambda e: e.measured("gigaflops"), tables.two)])
    written = report(tmp_path)
    rows = {(r["method"], r["seed"]): r["measured_gigaflops"] for r in csv.DictReader(written["csv"].splitlines())}
    assert (rows["kd", "0"], rows["kd", "1"], rows["at", "0"]) == ("1.5", "2.5", "")
    lines = [line.split("|") for line in written["md"].splitlines()]
    start = next(k for k, line in enumerate(lines) if line[-2:-1] == [" GFLOP "])
    kd = next(line for line in lines[start:] if line[1:2] and line[1].strip() == "KD")
    assert kd[-2].strip() == "2.00"


def test_settings_of_speed_are_named(tmp_path: Path) -> None:
    plan(tmp_path, methods=["kd"], seeds=[0])
    cell(tmp_path, PAIR, "kd", 0, RIGHT, recipe={"model": {"channels_last": True, "tf32": False}, "fused": True})
    for text in (report(tmp_path)[kind] for kind in ("md", "html")):
        assert re.search(r"settings of speed\W.*?channels_last, fused", text, re.S)
    cell(tmp_path, PAIR, "kd", 0, RIGHT)
    assert "settings of speed" not in report(tmp_path)["md"]


def test_tex_escapes() -> None:
    assert tex("a_b & 50% {x} #1 $y$ ~ ^ \\") == (
        r"a\_b \& 50\% \{x\} \#1 \$y\$ \textasciitilde{} \textasciicircum{} \textbackslash{}"
    )
    assert tex("-0.50 [-1, +2] a-1 中é") == "$-$0.50 [$-$1, +2] a-1 ?é"


def test_ticks_are_round_and_inside() -> None:
    assert ticks(0, 100) == [0, 20, 40, 60, 80, 100]
    assert ticks(69.03, 71.4) == [69.5, 70, 70.5, 71]
    assert ticks(-0.31, 0.62) == [-0.2, 0, 0.2, 0.4, 0.6]
    assert ticks(5, 5) == [5]


def test_summary_table(tmp_path: Path) -> None:
    plan(tmp_path, methods=["kd"], seeds=[0, 1])
    cell(tmp_path, PAIR, "kd", 0, RIGHT)
    text = summary_table(tmp_path)
    assert "runs done: 1 of 3" in text and "70.00 (1/2)" in text and "2 missing" in text
    assert not (tmp_path / "report.md").exists()


def test_no_benchmark_and_damaged_result_write_nothing(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not a results folder"):
        write_report(tmp_path)
    plan(tmp_path)
    (cell(tmp_path, PAIR, "kd", 0, RIGHT) / "result.json").write_text("{")
    with pytest.raises(UserError, match=r"kd/seed_0/result\.json is damaged"):
        write_report(tmp_path)
    assert not list(tmp_path.glob("report.*"))
