"""Output for the user, printed on rank 0 only: results to stdout, warnings and errors to stderr.

What a name or a file could send to the terminal is shown as :func:`ickd_pl.errors.printable` shows it.

Not ``logging``, whose levels and handlers (also Lightning's) would change a command's output.
"""

from __future__ import annotations

import os
import sys
from typing import TextIO

from ickd_pl.errors import printable

# What tells the rank to a process that has not imported Lightning, which is slow; in Lightning's order.
_RANKS = ("RANK", "LOCAL_RANK", "SLURM_PROCID", "JSM_NAMESPACE_RANK")


def rank() -> int:
    """This process's rank among those of its run."""
    # Imported by Lightning, and slow to import without it.
    lightning = sys.modules.get("lightning_utilities.core.rank_zero")
    # private: lightning rank_zero_only.rank
    known = getattr(getattr(lightning, "rank_zero_only", None), "rank", None)
    told = next((os.environ[name] for name in _RANKS if name in os.environ), "0")
    return int(known if known is not None else told)


def log(text: str) -> None:
    """Print a line to stdout."""
    _print(text, sys.stdout)


def warn(text: str) -> None:
    """Print a warning or an error to stderr."""
    _print(text, sys.stderr)


def _print(text: str, stream: TextIO) -> None:
    if rank() == 0:
        print(printable(text, lines=True), file=stream, flush=True)
