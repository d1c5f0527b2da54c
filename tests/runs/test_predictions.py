"""The rows of predictions.csv."""

from __future__ import annotations

import csv
import os
from pathlib import Path
from types import SimpleNamespace

import torch

from ickd_pl.plain import from_csv_cell
from ickd_pl.runs.predictions import write_predictions

PROBABILITIES = [torch.tensor([[0.25, 0.75], [0.5, 0.5]]), torch.tensor([[1.0, 0.0]])]


def test_without_names_rows_are_numbered(tmp_path: Path) -> None:
    path = write_predictions(tmp_path / "p.csv", PROBABILITIES, SimpleNamespace())
    assert path.read_text().splitlines() == ["index,class,probability", "0,1,0.750000", "1,0,0.500000", "2,0,1.000000"]


def test_paths_and_class_names_are_used(tmp_path: Path) -> None:
    data = SimpleNamespace(predict_paths=lambda: ["a.png", "b, c.png", "d.png"], class_names=["cat", "dog"])
    lines = write_predictions(tmp_path / "p.csv", PROBABILITIES, data).read_text().splitlines()
    assert lines == ["path,class,probability", "a.png,dog,0.750000", '"b, c.png",cat,0.500000', "d.png,cat,1.000000"]


def test_a_name_of_any_bytes_survives(tmp_path: Path) -> None:
    names = [os.fsdecode(b"caf\xe9\xff.png"), "a\nb\r\x1b[31m\\x41.png", "=cmd|' /C'!A0.png"]
    data = SimpleNamespace(predict_paths=lambda: names, class_names=["=1+1", "dog"])
    content = write_predictions(tmp_path / "p.csv", PROBABILITIES, data).read_bytes()
    assert b"\x1b" not in content and b"\r" not in content
    rows = list(csv.DictReader(content.decode("utf-8").splitlines(keepends=True)))
    assert [os.fsencode(from_csv_cell(row["path"])) for row in rows] == [os.fsencode(name) for name in names]
    assert rows[0]["path"] == r"caf\xe9\xff.png" and rows[2]["path"].startswith("'=")
    assert [row["class"] for row in rows] == ["dog", "'=1+1", "'=1+1"]
