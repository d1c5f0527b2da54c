"""The commands for newcomers in README and docs/benchmark.md work as written, with fewer epochs."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.runs.helpers import QUIET, REPOSITORY, Forked, Run, load


def commands() -> list[str]:
    text = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    block = text.partition("# newcomer\n")[2].partition("```")[0]
    return block.strip().splitlines()


def test_the_five_commands_for_newcomers(forked: Forked) -> None:
    pytest.importorskip("onnxruntime")
    *lines, last = commands()
    assert len(lines) == 4
    for line in lines:
        short = line.replace("max_epochs 12", "max_epochs 2").replace("ckpt_epoch_12", "ckpt_epoch_2")
        program, *args = shlex.split(short.replace("[8,9,11]", "[1]").removeprefix("python "))
        done = forked.run(*args, *(QUIET if "--data" in args else []))
        assert program == "cli.py" and done.status == 0, f"{line}\n{done.err}"
    python = subprocess.run(
        [sys.executable, *shlex.split(last)[1:]], capture_output=True, text=True, timeout=240, check=False
    )
    assert python.stdout.strip() == "(7, 10)", python.stderr


def test_the_pack_in_python(teacher: Run) -> None:
    text = (REPOSITORY / "docs" / "benchmark.md").read_text(encoding="utf-8")
    code = text.partition("```python\n")[2].partition("```")[0]
    named = "checkpoints/digits/resnet20_vanilla/ckpt_epoch_12.pth"
    assert named in code
    short = (
        code.replace(named, str(teacher.last))
        .replace("max_epochs=12", "max_epochs=1")
        .replace("Digits())", "Digits(train_size=64))")
    )
    exec(compile(short, "docs/benchmark.md", "exec"), {"__name__": "docs"})
    for name in ("vanilla", "kd", "ickd"):
        checkpoint = load(Path("outputs/pack") / name / "checkpoints" / "last.ckpt")
        assert checkpoint["ickd_pl"] and not [key for key in checkpoint["state_dict"] if "teacher" in key]
