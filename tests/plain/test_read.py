"""YAML and JSON that are too large, too deep or too repetitive, and files that are none."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from ickd_pl.plain import TooMuch, parse_yaml, read, read_json, read_yaml


def laughs(levels: int, first: str = "[x, x, x, x, x, x, x, x, x]", others: str = "[{}]") -> str:
    """Aliases of aliases: nine times as much on every level."""
    lines = [f"a0: &a0 {first}"]
    lines += [f"a{n}: &a{n} {others.format(', '.join([f'*a{n - 1}'] * 9))}" for n in range(1, levels)]
    return "\n".join(lines)


BOMBS = {
    "brackets": "[" * 5000,
    "mappings": "{a: " * 5000,
    "dashes": "- " * 5000 + "x",
    "indents": "".join(" " * n + "a:\n" for n in range(500)),
    "101 levels": "[" * 101 + "]" * 101,
    "aliases": laughs(9),
    "merges": laughs(9, "{k: 1}", "{{<<: [{}]}}"),
    "a chain of aliases": "\n".join(["- &a0 [1]", *(f"- &a{n} [*a{n - 1}]" for n in range(1, 200))]),
    "9 MB": "[" + "1, " * 3_000_000 + "1]",
    "many values": "[" + "1, " * 300_000 + "1]",
    "one value": "a: " + "x" * 900_000,
    "itself": "&a [*a]",
}


@pytest.mark.parametrize("loader", ["C", "Python"])
@pytest.mark.parametrize("bomb", BOMBS)
def test_a_bomb_is_refused_at_once(bomb: str, loader: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if loader == "Python":
        monkeypatch.setattr(read, "_Loader", yaml.SafeLoader)
    began = time.process_time()
    with pytest.raises(TooMuch, match=r"^(larger than|nested deeper|holds more|holds a value|refers to)"):
        parse_yaml(BOMBS[bomb])
    assert time.process_time() - began < 8  # a fraction of it, on a machine with nothing else to do


def test_what_people_write_is_read() -> None:
    text = "base: &b {lr: 0.1, on: yes}\nmine: {<<: *b, lr: 1.0e-3}\nempty:\nlist: [1, *b]\n"
    base = {"lr": 0.1, True: True}
    assert parse_yaml(text) == {"base": base, "mine": {"lr": 0.001, True: True}, "empty": None, "list": [1, base]}
    assert parse_yaml("[" * 100 + "]" * 100)
    assert len(parse_yaml("[" + "1," * 90_000 + "1]")) == 90_001
    assert parse_yaml("") is None


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a: 1\nb: 2\na: 3", "not valid YAML: a is given twice in line 3, column 1"),
        ("a: [", "not valid YAML"),
        ("? [a]\n: 1", "unhashable key"),
        ("a: *b", "refers to b, which is unknown"),
        ("a\0b", "not valid YAML"),
        ("!!python/object/apply:os.system [ls]", "could not determine a constructor"),
        ("a: " + "1" * 50_000, "4300 digits"),
        ("a: 2020-99-99", "month"),
    ],
)
def test_a_mistake_has_a_reason(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        parse_yaml(text)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[" * 100_000, "nested too deeply"),
        ("[" * 102 + "]" * 102, "nested deeper than 100 levels"),
        (json.dumps("x" * 5_000_000), "larger than 4,194,304 bytes"),
        ("1" * 5000, "4300 digits"),
        ("[1", "Expecting"),
    ],
)
def test_json(tmp_path: Path, text: str, reason: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=reason):
        read_json(path)
    path.write_text('{"a": ' + "[" * 99 + "]" * 99 + "}")
    assert "a" in read_json(path)


@pytest.mark.parametrize("reader", [read_yaml, read_json])
def test_only_regular_files_are_read(tmp_path: Path, reader: Any) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("pipe")
    for path, reason in (
        (tmp_path / "pipe", "a pipe, socket or device"),
        (tmp_path / "link", "a pipe, socket or device"),
        (Path("/dev/zero"), "a pipe, socket or device"),
        (tmp_path, "a folder"),
        (tmp_path / "gone", "No such file"),
    ):
        with pytest.raises(OSError, match=reason):
            reader(path)
