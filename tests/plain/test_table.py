"""Cells of tables: no spreadsheet evaluates them, every program reads them, and every name comes back."""

from __future__ import annotations

import csv
import io
import os
import random

import pytest

from ickd_pl.plain import csv_cell, csv_rows, csv_text, from_csv_cell

NAMES = [
    *("=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "  =1", "\n=1", "\u00a0=1", "\uff1d1", "'=1", "'", "''"),
    *("a\x1b[31mb", "a\nb", "a\r\nb", "a\tb", "\x85\u2028\u202e", "\\x41", "\\\\u1234", "C:\\xyz\\users", "\\\x1b"),
    *('é, "x"', "", "=cmd|' /C'!A0", "\ud800", os.fsdecode(b"\xff\xfe caf\xe9.png")),
]


@pytest.mark.parametrize("name", NAMES)
def test_a_name_survives_and_is_no_formula(name: str) -> None:
    cell = str(csv_cell(name))
    assert from_csv_cell(cell) == name
    assert not cell.lstrip().startswith(("=", "+", "-", "@", "\uff1d"))
    assert not set(cell) & {"\x1b", "\r", "\x85", "\u2028", "\u202e"}
    text = csv_text([["name", "n"], [name, -1.5]])
    text.encode()
    assert list(csv.DictReader(io.StringIO(text, newline=""))) == [{"name": cell, "n": "-1.5"}]
    assert list(csv_rows(text)) == [{"name": cell, "n": "-1.5"}]


def test_any_text_survives() -> None:
    draw = random.Random(0)
    signs = "\\xu'=-+@ab01\x1b\x85\udc80\udcff\ud800\u2028\n\t\r,\" "
    for _ in range(20_000):
        name = "".join(draw.choices(signs, k=draw.randint(1, 8)))
        assert from_csv_cell(str(csv_cell(name))) == name


def test_numbers_stay_numbers() -> None:
    assert [csv_cell(value) for value in (-1.5, 0, None, True)] == [-1.5, 0, None, True]


def test_a_table_that_cannot_be_read() -> None:
    rows = csv_rows(f"a,b\n1,2\n3,{'x' * 200_000}\n")
    assert next(rows) == {"a": "1", "b": "2"}
    with pytest.raises(ValueError, match="not a table"):
        next(rows)
    assert list(csv_rows("a,b\n1\n\n2,3,4\n")) == [{"a": "1"}, {"a": "2", "b": "3"}]
    assert list(csv_rows("")) == []
