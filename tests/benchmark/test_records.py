"""result.json and identity.json: reading, writing, and hostile or old files."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ickd_pl.benchmark.fingerprint import Identity
from ickd_pl.benchmark.records import (
    CellKey,
    CellResult,
    benchmark_file,
    read_result,
    read_started,
    write_result,
    write_started,
)
from ickd_pl.errors import UserError
from ickd_pl.runs.machine import Piece
from tests.benchmark.report.synthetic import cell, plan

PAIR = "resnet20_resnet8"
# The keys of file format 2. Format 1 has neither ``form`` nor ``method_hash``.
KEYS = [
    "form",
    *("cell", "status", "reason", "data", "split", "num_test", "acc1_last", "acc1_best", "best_epoch", "acc5_last"),
    *("train_acc1_last", "epochs", "parameters", "seconds", "images_per_second", "config", "packed_with", "device"),
    *("precision", "versions", "recipe", "code_hash", "data_hash", "teacher_hash", "method_hash", "accepted_code"),
    "chosen_on_validation",
]
SURROGATE = "\ud800"
DEEP: Any = 1
for _ in range(300):
    DEEP = {"a": [DEEP]}


def a_result(**changes: Any) -> CellResult:
    key = CellKey(pair=PAIR, teacher="resnet20", student="resnet8", method="kd", seed=0)
    whole: dict[str, Any] = {
        "data": "digits",
        "split": "test",
        "num_test": 360,
        "acc1_last": 22.2222,
        "recipe": {"a": 1},
    }
    return CellResult(cell=key, status="done", code_hash="c", data_hash="d", **whole | changes)


def test_a_result_is_read_as_it_was_written_under_the_old_keys(tmp_path: Path) -> None:
    path = tmp_path / PAIR / "kd" / "seed_0"
    result = a_result(packed_with=["at"], versions={"torch": "2"}, teacher_hash="t", accepted_code=True)
    write_result(path, result)
    content = json.loads((path / "result.json").read_text())
    assert list(content) == KEYS
    assert list(content["cell"]) == ["kind", "pair", "teacher", "student", "method", "seed"]
    assert read_result(path) == result and result.identity == Identity("c", "d", "t")
    write_result(path, replace(result, weights="t.pth"))
    assert set(json.loads((path / "result.json").read_text())) == {*KEYS, "weights"}
    assert read_result(tmp_path) is None


def test_the_pieces_of_a_run_are_written_where_there_are_several(tmp_path: Path) -> None:
    path = tmp_path / PAIR / "kd" / "seed_0"
    parts = [Piece(device=d, precision="32-true", versions={"torch": "2"}, first=1, last=2) for d in ("cuda", "cpu")]
    result = a_result(device="cpu", pieces=parts)
    write_result(path, result)
    assert set(json.loads((path / "result.json").read_text())) == {*KEYS, "pieces"}
    assert read_result(path) == result and result.identity == a_result().identity


def test_fields_that_are_missing_get_their_defaults_and_unknown_ones_are_left_out(tmp_path: Path) -> None:
    path = cell(tmp_path, PAIR, "kd", 0) / "result.json"
    needed = ("cell", "status", "data", "split", "num_test", "acc1_last", "recipe", "code_hash", "data_hash")
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**{key: content[key] for key in needed}, "of_tomorrow": DEEP}))
    result = read_result(path.parent)
    assert result is not None and result.acc1_last == 90.0
    assert (result.seconds, result.packed_with, result.versions, result.accepted_code) == (None, [], {}, False)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("acc1_last", "10" + "0" * 400, "acc1_last is 1000"),
        ("acc1_last", "1e999", "acc1_last is inf, expected a finite number"),
        ("acc1_last", "[1]", "acc1_last is [1], expected a number or null"),
        ("num_test", "1" + "0" * 400, "num_test is 1000"),
        ("num_test", "1" + "0" * 5000, "is damaged"),
        ("num_test", "1.5", "num_test is 1.5, expected a whole number or null"),
        ("seconds", "1e300", "seconds is 1e+300, expected a finite number"),
        ("packed_with", "[1, 2]", "packed_with[0] is 1, expected a string"),
        ("packed_with", '{"a": 1}', "packed_with is {'a': 1}, expected a list"),
        ("versions", '{"torch": [2]}', "versions.torch is [2], expected a string"),
        ("reason", json.dumps("x" * 200_000), "expected text of up to 10,000 characters"),
        ("reason", json.dumps(SURROGATE), "expected text"),
        ("reason", '["a"]', "reason is ['a'], expected a string or null"),
        ("device", "{}", "device is {}, expected a string or null"),
        ("accepted_code", "1", "accepted_code is 1, expected true or false"),
        ("status", "[]", "status is [], expected done, failed, refused"),
        ("chosen_on_validation", json.dumps(DEEP), "chosen_on_validation is nested deeper"),
        ("recipe", json.dumps(DEEP), "recipe is nested deeper"),
        ("recipe", "[" * 100_000 + "]" * 100_000, "is damaged"),
        ("code_hash", "null", "code_hash is None, expected a string"),
        ("cell", '{"teacher": "resnet20", "seed": "0"}', "cell.seed is '0', expected a whole number"),
        ("cell", '{"seed": 0}', "no cell.teacher"),
        ("cell", '"kd"', "cell is 'kd', expected a mapping"),
    ],
)
def test_a_hostile_result_ends_in_a_line(tmp_path: Path, field: str, value: str, message: str) -> None:
    path = cell(tmp_path, PAIR, "kd", 0) / "result.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), field: "HERE"}).replace('"HERE"', value))
    with pytest.raises(UserError) as caught:
        read_result(path.parent)
    check_line(str(caught.value), path, message)
    assert f"move {path.parent} away" in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"identities": [], "recipe": {}}', "identities is empty"),
        ('{"identities": [["a", "b"]], "recipe": {}}', "expected a list of code_hash, data_hash, teacher_hash"),
        ('{"identities": [["a", 1, null]], "recipe": {}}', "identities[0].data_hash is 1, expected a string"),
        ('{"identities": 3, "recipe": {}}', "identities is 3, expected a list"),
        ('{"identities": [["a", "b", null]]}', "no recipe"),
        ("[]", "the file is [], expected a mapping"),
        ("[" * 100_000, "is damaged"),
        (json.dumps({"identities": [["a", "b", "c"]], "recipe": DEEP}), "recipe is nested deeper"),
    ],
)
def test_a_hostile_identity_ends_in_a_line(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "identity.json").write_text(content)
    with pytest.raises(UserError) as caught:
        read_started(tmp_path)
    check_line(str(caught.value), tmp_path / "identity.json", message)


def test_identities_are_kept_newest_last(tmp_path: Path) -> None:
    first, second = Identity("a", "d", None), Identity("b", "d", None)
    for identity in (first, second, first):
        started = write_started(tmp_path, identity, {"a": 1})
    assert started == read_started(tmp_path)
    assert started.identities == [second, first]
    assert started.codes == {("a", None), ("b", None)}
    assert json.loads((tmp_path / "identity.json").read_text()) == {
        "identities": [["b", "d", None, None], ["a", "d", None, None]],
        "recipe": {"a": 1},
        "form": 2,
    }


@pytest.mark.parametrize(
    "text", ["[" * 5000, "seeds: [true]", "seeds: 2020-99-99", 'name: "\\ud800"', f"model: {'[' * 60}{']' * 60}"]
)
def test_a_hostile_benchmark_file_ends_in_a_line(tmp_path: Path, text: str) -> None:
    path = plan(tmp_path) / "benchmark.yaml"
    key = text.split(":", maxsplit=1)[0]
    kept = [line for line in path.read_text().splitlines(keepends=True) if not line.startswith(key)]
    path.write_text("".join([*kept, text, "\n"]))
    with pytest.raises(UserError) as caught:
        benchmark_file(tmp_path)
    check_line(str(caught.value), path, "is damaged")


def check_line(error: str, path: Path, message: str) -> None:
    assert message in error and str(path) in error
    assert "\n" not in error and len(error) < 700
    error.encode()
