"""Errors caused by the user: one line with what was expected, what came and what to do."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable


class UserError(ValueError):
    """Invalid input. The command line prints only the message, without a traceback.

    Attributes:
        exit_status: the command line's exit status after it.
    """

    exit_status = 2

    def __str__(self) -> str:  # it may quote a file or its name
        return printable(super().__str__(), lines=True)


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


class LostRank(UserError):
    """Another process of the run is gone, with which this one was talking."""

    exit_status = 1


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


# Control characters, line separators, marks that reverse the direction of text, and surrogates, as which Python reads
# the bytes of a name that are not UTF-8.
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: object, lines: bool = False) -> str:
    """A name as one line that any terminal and any text file takes.

    Args:
        text: a name or path; its bytes that are not UTF-8 are surrogates, as Python reads them.
        lines: keep line breaks and tabs.

    Returns:
        The text with control characters and such bytes as ``\\x1b``, and rarer ones as ``\\u2028``.
    """
    return _UNPRINTABLE.sub(lambda found: found[0] if lines and found[0] in "\n\t" else _escape(found[0]), str(text))


def _escape(character: str) -> str:
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:
        code -= 0xDC00  # the byte itself
    return f"\\x{code:02x}" if code < 0x80 or code != ord(character) else f"\\u{code:04x}"
