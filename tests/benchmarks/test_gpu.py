"""``benchmarks/gpu.py``: a whole tiny run without a GPU; checks that fail, a part that crashes and one that hangs."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.runs.helpers import REPOSITORY

SCRIPT = REPOSITORY / "benchmarks" / "gpu.py"
KEYS = {"part", "name", "outcome", "why", "device", "settings", "values", "seconds"}
# What a part looks like, with one check of each kind.
BROKEN = """
import os
from gpu_checks.record import NotMeasured, Record

def nothing():
    raise NotMeasured("no reason")

def run(record: Record) -> None:
    record.check("within", lambda: {"wrong": 1.0}, {"why": "bound"}, {"wrong": 1})
    record.check("beyond", lambda: {"wrong": 1.5}, {}, {"wrong": 1})
    record.check("NaN", lambda: {"wrong": float("nan")}, {}, {"wrong": 1})
    record.check("raises", lambda: {}["missing"])
    record.check("a number", lambda: {"ms": 2.0})
    record.check("cannot be made", nothing)
    record.check("needs a GPU", lambda: {"wrong": 0}, {}, {"wrong": 0}, needs_cuda=True)
    os._exit(3)
"""
SOUND = "def run(record):\n    record.check('sound', lambda: {'wrong': 0}, {}, {'wrong': 0})\n"


@pytest.fixture
def gpu() -> ModuleType:
    spec = importlib.util.spec_from_file_location("ickd_pl_gpu", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def planted(gpu: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    """The script with parts of ours, each in a process of its own, as on a machine with a GPU."""
    for name, text in (("broken", BROKEN), ("sound", SOUND)):
        (tmp_path / f"planted_{name}.py").write_text(text, encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr(gpu, "_has_cuda", lambda: True)
    parts = {name: gpu.Part(f"planted_{name}", 60, "") for name in ("broken", "sound")}
    monkeypatch.setattr(gpu, "PARTS", parts)
    return gpu


def outcomes(checks: list[dict[str, Any]], part: str) -> dict[str, str]:
    return {check["name"]: check["outcome"] for check in checks if check["part"] == part}


@pytest.mark.parametrize("parts", [["machine", "loader", "captured20"], pytest.param([], marks=pytest.mark.slow)])
def test_a_tiny_run_without_a_gpu(gpu: ModuleType, monkeypatch: pytest.MonkeyPatch, parts: list[str]) -> None:
    """Every part runs, what needs CUDA is never passed, and the file says on what it ran."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *parts, "--tiny", "--output", "found.json"],
        capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr}"
    found = json.loads(Path("found.json").read_text(encoding="utf-8"))
    assert found["tiny"] is True and found["machine"]["card"] is None and found["versions"]["torch"]
    assert found["machine"]["python"] == ".".join(map(str, sys.version_info[:3]))
    checks = found["checks"]
    assert all(set(check) == KEYS for check in checks)
    assert found["outcomes"] == Counter(check["outcome"] for check in checks)
    assert set(found["outcomes"]) == {"passed", "measured", "not measured"}
    assert {check["part"] for check in checks} == set(parts or gpu.PARTS)
    without = [check for check in checks if check["outcome"] == "not measured"]
    assert {check["why"] for check in without} - {"scikit-learn is not installed"} == {"no CUDA"}
    assert not any(check["values"] for check in without)
    named = (
        "host waits",
        "GPU against CPU",
        *(() if parts else ("NCCL", "CUDA graph", "on cuda", "float16", "memory")),
    )
    for name in named:
        assert [check for check in without if name in check["name"]], name
    assert not [c for c in checks if "cuda" in c["name"].lower() and c["outcome"] != "not measured"]
    passed = [check["name"] for check in checks if check["outcome"] == "passed"]
    assert "against torchvision, image by image" in passed
    assert passed.count("float32 on cpu against float64 on the CPU") == (0 if parts else 13)
    assert f"{len(passed)} passed" in done.stdout.splitlines()[-1]


def test_what_fails_is_said_and_the_next_part_runs(planted: ModuleType, capfd: pytest.CaptureFixture[str]) -> None:
    assert planted.main(["--output", "found.json"]) == 1
    checks = json.loads(Path("found.json").read_text(encoding="utf-8"))["checks"]
    assert outcomes(checks, "broken") == {
        "within": "passed",
        "beyond": "failed",
        "NaN": "failed",
        "raises": "failed",
        "a number": "measured",
        "cannot be made": "not measured",
        "needs a GPU": "not measured",
        "the part itself": "failed",
    }
    assert outcomes(checks, "sound") == {"sound": "passed"}
    why = {check["name"]: check["why"] for check in checks}
    assert why["beyond"] == "wrong is 1.5, at most 1 was expected"
    assert why["raises"].startswith("KeyError: 'missing' (planted_broken.py:")
    assert (why["cannot be made"], why["needs a GPU"]) == ("no reason", "no CUDA")
    assert why["the part itself"].startswith("exit status 3")
    assert "failed       broken: beyond: wrong is 1.5" in capfd.readouterr().out


def test_a_part_that_hangs_is_stopped(planted: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped before it can have imported torch."""
    monkeypatch.setattr(planted, "GRACE", 0.1)
    lines = planted.run(["sound"], 0.1, tiny=False)
    assert [(line["part"], line["outcome"]) for line in lines] == [("sound", "failed")]
    assert lines[0]["why"].startswith("stopped after 0 s")


def test_without_a_gpu_only_a_tiny_run(
    gpu: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gpu, "_has_cuda", lambda: False)
    assert gpu.main(["loader"]) == 2
    assert "no CUDA device" in capsys.readouterr().err
    assert not Path("gpu.json").exists()


def test_options(gpu: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    for words, expected in (
        (["loder"], "unknown part loder: expected one of machine, loader"),
        (["--budget", "0"], "expected seconds above 0, got 0"),
        (["--output", "no/such/file.json"], "there is no folder no/such"),
    ):
        with pytest.raises(SystemExit) as exit_status:
            gpu.main(words)
        assert exit_status.value.code == 2
        assert expected in capsys.readouterr().err
