"""Output for the user, printed on rank 0 only: results to stdout, warnings and errors to stderr.

What a name or a file could send to the terminal is shown as :func:`ickd_pl.errors.printable` shows it.

Not ``logging``, whose levels and handlers (also Lightning's) would change a command's output.
"""

from __future__ import annotations

import sys

from pytorch_lightning.utilities import rank_zero_only

from ickd_pl.errors import printable


@rank_zero_only
def log(text: str) -> None:
    """Print a line to stdout."""
    print(printable(text, lines=True), flush=True)


@rank_zero_only
def warn(text: str) -> None:
    """Print a warning or an error to stderr."""
    print(printable(text, lines=True), file=sys.stderr, flush=True)
