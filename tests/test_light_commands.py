"""Help and commands that only read files do not wait for Lightning, nor, where they can do without, for torch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import ickd_pl
from ickd_pl import cli, commands

RESULTS = Path(__file__).parent / "written_by_0_1/results"
PROGRAM = """
import sys
from ickd_pl.cli import main

try:
    status = main(sys.argv[1:])
except SystemExit as stop:  # argparse after --help
    status = stop.code
print(status, *(name for name in ("torch", "pytorch_lightning") if name in sys.modules))
"""


def run(*args: str) -> tuple[str, str]:
    """The output of a command in a process of its own, and its status with the slow libraries that it imported."""
    done = subprocess.run([sys.executable, "-c", PROGRAM, *args], capture_output=True, text=True, check=False)
    assert done.stderr == "" or not args
    out, _, imported = done.stdout.strip().rpartition("\n")
    return out, imported


@pytest.mark.parametrize(
    ("args", "shown", "imported"),
    [
        ([], "", "2"),
        (["--help"], "usage: ickd", "0"),
        (["bench", "--help"], "show the progress of a benchmark", "0"),
        (["bench", "status", "--output", str(RESULTS)], "done      resnet20_resnet8/fsp/seed_0 12.22", "0"),
        (["export", "--help"], "safetensors", "0 torch"),
        (["teachers", "list"], "resnet32x4  79.42", "0 torch"),
    ],
    ids=lambda value: " ".join(value[:2]) if isinstance(value, list) else "",
)
def test_nothing_slow_is_imported(args: list[str], shown: str, imported: str) -> None:
    out, found = run(*args)
    assert shown in out and found == imported


def test_the_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["-h"]) == 0
    out = capsys.readouterr().out
    for name in [*cli.LIGHTNING_COMMANDS, *commands.names()]:
        assert f"\n  {name} " in out
    assert max(map(len, out.splitlines())) <= 80


def test_all_names_and_modules_of_the_package_are_there() -> None:
    """Also after a plain ``import ickd_pl``, which imports none of them."""
    program = (
        "import sys, ickd_pl; assert 'torch' not in sys.modules; ickd_pl.data.CIFAR100, ickd_pl.runs.FiniteGuard; "
        "from ickd_pl import *; assert DistillationModule is ickd_pl.training.module.DistillationModule"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.stderr == ""
    assert all(getattr(ickd_pl, name) is not None for name in ickd_pl.__all__)
    assert set(ickd_pl.__all__) <= set(dir(ickd_pl))
