"""The help of ``fit`` is short, and ``--help=all`` is whole."""

from __future__ import annotations

import re

from ickd_pl.runs.short_help import shortened
from tests.runs.helpers import cli

WHOLE = """\
usage: ickd [options] fit [-h] [--trainer CONFIG]
                          [--model.lr LR]

What it does.

options:
  -h, --help            Show this
                        message.

Lightning's Trainer:
  --trainer CONFIG      Path.
  --trainer.accelerator ACCELERATOR
                        The device. (default: auto, known
                        subclasses: a.CPU,
                        a.CUDA)
  --trainer.barebones BAREBONES
                        Rare.

The model:
  --model.student.help [CLASS]
                        Help.
  --model.lr LR         rate
  --model.strategies.help [CLASS]
                        Help.
  --model.strategies STRATEGIES, --model.strategies+ STRATEGIES
                        methods (known subclasses: KD)

Linked arguments:
  _seed(seed_everything) --> model.seed [applied on parse]
                        initialises
"""


def test_shortened() -> None:
    text = shortened(WHOLE)
    assert text.startswith("usage: ickd fit [--config FILE]... [--OPTION VALUE]...\n\n")
    assert text.partition("What it does.\n\n")[2] == (
        "options:\n"
        "  -h, --help            Show this\n"
        "                        message.\n\n"
        "Lightning's Trainer:\n"
        "  --trainer.accelerator ACCELERATOR\n"
        "                        The device. (default: auto)\n\n"
        "The model:\n"
        "  --model.lr LR         rate\n"
        "  --model.strategies.help [CLASS]\n"
        "                        Help.\n"
        "  --model.strategies STRATEGIES, --model.strategies+ STRATEGIES\n"
        "                        methods (known subclasses: KD)\n\n"
    )


def test_the_help_of_fit() -> None:
    """At most 300 lines, with all options of the project; the whole help has the others too."""
    options = re.compile(r"^  (?:-\w \w*, |-\w, )?--([\w.]+)", re.M)
    short, whole = cli("fit", "--help"), cli("fit", "--help=all")
    assert short.status == whole.status == 0 and len(short.out.splitlines()) <= 300
    shown, every = set(options.findall(short.out)), set(options.findall(whole.out))
    own = {name for name in every if not name.startswith("trainer.") and not name.endswith(".help")}
    assert own - shown == {"trainer", "model", "weights_only"}
    assert {"trainer.max_epochs", "trainer.devices", "data.help", "model.strategies.help"} <= shown < every
    assert {"trainer.barebones", "model.student.help"} <= every and "Linked arguments" in whole.out
    for advice in ("--help=all", "--data.help Digits", "--model.strategies.help ICKD", "--print_config"):
        assert f"\n  {advice}  " in short.out
    assert "ickd_pl.strategies.KD," in short.out and "torch.nn.Linear" not in short.out
