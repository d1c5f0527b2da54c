"""Errors caused by the user: one line with what was expected, what came and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """Invalid input. The command line prints only the message, without a traceback.

    Attributes:
        exit_status: the command line's exit status after it.
    """

    exit_status = 2


class IncompatiblePair(UserError):
    """A method cannot work on this teacher and this student; the message names both and the mismatched shapes."""


class NonFiniteLoss(UserError):
    """A loss, gradient or weight became infinite or NaN; the message names it and the step.

    Args:
        message: for the user.
        rank: the rank that has it, and that prints the message; None: rank 0.
    """

    exit_status = 3

    def __init__(self, message: str, rank: int | None = None) -> None:
        super().__init__(message)
        self.rank = rank


def near(name: str, known: Iterable[str]) -> str:
    """A hint for an unknown name: similar known names, or all of them if none is similar.

    Args:
        name: what the user wrote.
        known: all accepted names.

    Returns:
        For example ``did you mean resnet8, resnet8x4?`` or ``known: a, b, c``.
    """
    names = sorted(set(known))
    folded = {n.lower(): n for n in names}
    longer = [n for n in folded if n.startswith(name.lower()) and n != name.lower()]
    alike = difflib.get_close_matches(name.lower(), folded, n=4, cutoff=0.5)
    close = list(dict.fromkeys([*longer, *(n for n in alike if folded[n] != name)]))[:4]
    if close:
        return f"did you mean {', '.join(folded[c] for c in close)}?"
    shown = ", ".join(names[:30])
    return f"known: {shown}" if len(names) <= 30 else f"known: {shown}, ... ({len(names)} in all)"
