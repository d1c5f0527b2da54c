"""Lines for the user, printed once however many ranks there are: results to stdout, warnings and errors to stderr.

They are a command's output, which logging's levels and handlers (Lightning's among them) must not change.
"""

from __future__ import annotations

import sys

from pytorch_lightning.utilities import rank_zero_only


@rank_zero_only
def log(text: str) -> None:
    """Print a line of the command's output."""
    print(text, flush=True)


@rank_zero_only
def warn(text: str) -> None:
    """Print a warning or an error."""
    print(text, file=sys.stderr, flush=True)
