"""Checks of arguments that types cannot make: the numbers of the module and of the methods.

Every message is one line: whose argument, what was expected, what came. ``owner`` is the object (or its name) in front.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from ickd_pl.errors import UserError


def above_zero(owner: object, /, **values: object) -> None:
    """Raise :class:`UserError` for the first value that is no finite number above 0."""
    _check(owner, values, "a number above 0", lambda value: value > 0)


def zero_or_more(owner: object, /, **values: object) -> None:
    """Raise :class:`UserError` for the first value that is no finite number from 0."""
    _check(owner, values, "0 or more", lambda value: value >= 0)


def between(owner: object, low: float, high: float, /, **values: object) -> None:
    """Raise :class:`UserError` for the first value that is no number from ``low`` to ``high``, this one excluded."""
    expected = f"{low} or more and below {high}"
    _check(owner, values, expected, lambda value: low <= value < high)


def whole_number(owner: object, least: int, /, **values: object) -> None:
    """Raise :class:`UserError` for the first value that is no ``int`` from ``least``."""
    expected = f"a whole number, {least} or more"
    _check(owner, values, expected, lambda value: isinstance(value, int) and value >= least)


def _check(owner: object, values: dict[str, object], expected: str, fits: Callable[[Any], bool]) -> None:
    for name, value in values.items():
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or value in (math.inf, -math.inf) or not fits(value):  # NaN fits nothing
            raise UserError(f"{name_of(owner)}.{name}: expected {expected}, got {value!r}")


def name_of(owner: object) -> str:
    """What messages call the owner of an argument."""
    return owner if isinstance(owner, str) else type(owner).__name__
