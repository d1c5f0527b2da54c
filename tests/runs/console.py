"""The command line as the console script ``ickd`` starts it: modules of the current folder are found."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from ickd_pl.cli import main as cli


def main(args: list[str]) -> Any:
    sys.path.append(str(Path.cwd()))
    return cli(args)
