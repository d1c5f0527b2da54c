"""The parser's messages become one line with what came and what is accepted."""

from __future__ import annotations

import pytest

from ickd_pl.runs.parser import one_line

OPTIONS = ["trainer.max_epochs", "trainer.devices", "model.lr", "model.strategies", "seed_everything"]


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (
            "unrecognized arguments: --trainer.max_epoch 1",
            "unknown option --trainer.max_epoch: did you mean trainer.ma",
        ),
        ("unrecognized arguments: --model.lrr=3", "unknown option --model.lrr: did you mean model.lr"),
        ("unrecognized arguments: stray", "unexpected argument stray: options are given as --name value; see --help"),
        ("Option 'temprature' is not accepted", "unknown setting temprature: did you mean temperature"),
        ("the following arguments are required: model.student", "missing "),
        ("Parser key \"model.lr\":\n  Expected a <class 'float'>. Got value: x", "model.lr: expected float, got x"),
        ("something\n  never seen   before", "something never seen before"),
    ],
)
def test_one_line(message: str, expected: str) -> None:
    line = one_line(message, OPTIONS)
    assert line.startswith(expected)
    assert "\n" not in line
