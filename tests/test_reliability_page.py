"""docs/reliability.md: its code runs, its tests exist, and it lists every fault and exit status."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from ickd_pl.benchmark.time_limit import ALARM
from ickd_pl.errors import LostRank, NonFiniteLoss, UserError
from ickd_pl.runs.signals import SIGNALS
from tests.runs.helpers import REPOSITORY

PAGE = (REPOSITORY / "docs" / "reliability.md").read_text(encoding="utf-8")


def test_every_named_test_exists() -> None:
    rows = re.findall(r"^\| (\d+) \| (.+) \| (.+) \| (.+) \|$", PAGE, re.M)
    faults = [row for row in rows if "`" in row[2]]
    assert [int(number) for number, *_ in faults] == list(range(1, 28))
    for _, _, tests, result in faults:
        for name in re.findall(r"`([^`]+)`", tests):
            file, _, function = name.partition("::")
            text = (REPOSITORY / "tests" / file).read_text(encoding="utf-8")
            assert not function or re.search(rf"^def {function}\(", text, re.M), name
        assert result.strip()


def test_every_exit_status_is_listed() -> None:
    listed = {int(code) for code in re.findall(r"^\| (\d+) \| [^|]+ \|$", PAGE, re.M)}
    errors = {each.exit_status for each in (UserError, NonFiniteLoss, LostRank)}
    assert listed == {0, *errors, *(128 + number for number in (*SIGNALS, ALARM))}


@pytest.mark.filterwarnings("ignore")
def test_the_code_runs() -> None:
    (code,) = re.findall(r"```python\n(.+?)```", PAGE, re.S)
    exec(compile(code, "docs/reliability.md", "exec"), {})
    assert Path("last.ckpt").is_file()
