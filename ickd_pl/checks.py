"""Checks of values beyond their types: numeric arguments of the module and the methods, and values from files.

Every message is one line: owner and argument, what was expected, what came. ``owner`` is an object or its name.
"""

from __future__ import annotations

import inspect
import math
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path, PurePath
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from ickd_pl.errors import UserError, near


@dataclass(frozen=True)
class Number:
    """A condition on a finite number, for annotations: ``Annotated[float, Number("above 3", lambda x: x > 3)]``.

    Attributes:
        expected: description for the message.
        fits: whether a number meets the condition.
    """

    expected: str
    fits: Callable[[Any], bool]

    def check(self, owner: object, name: str, value: object) -> None:
        """Raise :class:`UserError` if the value is not such a number. A bool is not a number."""
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or value in (math.inf, -math.inf) or not self.fits(value):  # fits() is false for NaN
            raise UserError(f"{name_of(owner)}.{name}: expected {self.expected}, got {value!r}")


def at_least(limit: int) -> Number:
    """An ``int`` of at least ``limit``."""
    return Number(f"a whole number, {limit} or more", lambda value: isinstance(value, int) and value >= limit)


def from_to(low: float, high: float) -> Number:
    """A number from ``low`` (included) to ``high`` (excluded)."""
    return Number(f"{low} or more and below {high}", lambda value: low <= value < high)


POSITIVE = Number("a number above 0", lambda value: value > 0)
NON_NEGATIVE = Number("0 or more", lambda value: value >= 0)

PositiveFloat = Annotated[float, POSITIVE]
NonNegativeFloat = Annotated[float, NON_NEGATIVE]
PositiveInt = Annotated[int, at_least(1)]
NonNegativeInt = Annotated[int, at_least(0)]


def check_argument(owner: object, name: str, value: object, annotation: Any) -> None:
    """Check a value against its annotation: ``Annotated`` with a :class:`Number`, a ``Literal``, or either or None.

    Other annotations are not checked.

    Raises:
        UserError: the value does not match.
    """
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin in (Union, types.UnionType):
        others = [part for part in parts if part is not type(None)]
        if len(others) == 1 and value is not None:
            check_argument(owner, name, value, others[0])
    elif origin is Literal and not _fits_type(value, annotation):
        raise UserError(f"{name_of(owner)}.{name}: expected {' or '.join(map(str, parts))}, got {value!r}")
    for part in getattr(annotation, "__metadata__", ()):
        if isinstance(part, Number):
            part.check(owner, name, value)


def above_zero(owner: object, /, **values: object) -> None:
    """Raise :class:`UserError` for the first value that is not a finite number above 0."""
    _check(owner, values, POSITIVE)


def zero_or_more(owner: object, /, **values: object) -> None:
    """Raise :class:`UserError` for the first value that is not a finite number, 0 or more."""
    _check(owner, values, NON_NEGATIVE)


def between(owner: object, low: float, high: float, /, **values: object) -> None:
    """Raise :class:`UserError` for the first value that is not a number from ``low`` to below ``high``."""
    _check(owner, values, from_to(low, high))


def whole_number(owner: object, least: int, /, **values: object) -> None:
    """Raise :class:`UserError` for the first value that is not an ``int``, ``least`` or more."""
    _check(owner, values, at_least(least))


def _check(owner: object, values: dict[str, object], number: Number) -> None:
    for name, value in values.items():
        number.check(owner, name, value)


def name_of(owner: object) -> str:
    """The owner's name in messages."""
    return owner if isinstance(owner, str) else type(owner).__name__


# -- values that go to a file, and that come from one ------------------------------------------------------------------


def writable(where: str, value: Any, instead: str = "give numbers, strings, or lists or dictionaries of them") -> Any:
    """A value as plain data that checkpoints, YAML and JSON hold and give back as an equal value.

    A path becomes its string; a number of numpy, or of another subclass of a plain type, becomes the plain number.

    Args:
        where: name of the value, for the message.
        value: any value.
        instead: what the user can do, for the message.

    Raises:
        UserError: there is no such data, as for a function, an object, a tensor, a set, or NaN, which equals nothing.
    """
    if isinstance(value, list | tuple):
        parts = [writable(f"{where}[{i}]", v, instead) for i, v in enumerate(value)]
        return tuple(parts) if isinstance(value, tuple) else parts
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return {str(key): writable(f"{where}.{key}", v, instead) for key, v in value.items()}
    if type(value).__module__ == "numpy" and getattr(value, "shape", None) == ():
        value = value.item()
    if isinstance(value, PurePath):
        return str(value)
    own = value.value if isinstance(value, Enum) and isinstance(value, int | float | str) else value
    for kind in (bool, int, float, str):
        if isinstance(own, kind) and not (isinstance(own, float) and math.isnan(own)):
            return kind(own)
    if own is None:
        return None
    raise UserError(f"{where} is {short(value)}, which the record of a run cannot hold: {instead}")


def true_or_false(name: str, value: Any) -> bool:
    """Raise :class:`UserError` if the value is not a bool; returns it."""
    if type(value) is not bool:
        raise UserError(f"{name}: expected true or false, got {short(value)}")
    return value


def plain(value: object) -> bool:
    """Whether a value is a number, string, bool or None, or a list or mapping of those without ``class_path``."""
    if isinstance(value, list | tuple):
        return all(map(plain, value))
    if isinstance(value, dict):
        return "class_path" not in value and all(type(key) is str and plain(value[key]) for key in value)
    return value is None or type(value) in (bool, int, float, str)


def plain_arguments(function: Callable[..., Any], values: object, where: str, instead: str) -> dict[str, Any]:
    """Check arguments from a file against the function's annotations.

    A file may set a parameter only if its type consists of numbers, strings and lists or dicts of them. A value for any
    other parameter could be taken for the name of a class, and is refused.

    Args:
        function: a class or function with annotated parameters.
        values: the arguments by name.
        where: the file and its part, for the message.
        instead: what the user can do, for the message.

    Raises:
        UserError: an unknown name, a parameter of another type, or a value that is not of the parameter's type.
    """
    if not isinstance(values, Mapping):
        raise UserError(f"{where}: expected arguments by name, got {short(values)}; {instead}")
    hints = _parameters(function)
    known = list(hints)
    for name, value in values.items():
        if name not in known:
            raise UserError(f"{where}: unknown setting {short(name)}: {near(str(name), known)}")
        if not _may_come_from_a_file(hints.get(name)) or not _fits_type(value, hints[name]):
            raise UserError(f"{where}.{name} is {short(value)}, which a file may not set; {instead}")
    return dict(values)


def short(value: object) -> str:
    """Any value as one short line of printable ASCII characters, for a message."""
    try:
        text = ascii(value)
    except ValueError:  # a whole number of more digits than Python writes
        text = f"a {type(value).__name__} with very large numbers"
    return text if len(text) <= 80 else f"{text[:77]}..."


def _parameters(function: Callable[..., Any]) -> dict[str, Any]:
    """Names and types of the parameters; for a class also its parents', if ``**kwargs`` passes them on."""
    found: dict[str, Any] = {}
    for one in inspect.getmro(function) if isinstance(function, type) else [function]:
        call: Any = vars(one).get("__init__") if isinstance(one, type) else one
        if call is None:
            continue
        try:
            hints = get_type_hints(call)
        except (NameError, TypeError, AttributeError):  # a name under TYPE_CHECKING: then no parameter may be set
            hints = {}
        parameters = inspect.signature(call).parameters.values()
        named = [p.name for p in parameters if p.name != "self" and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
        found = {**{name: hints.get(name) for name in named}, **found}
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            break
    return found


def _may_come_from_a_file(annotation: Any) -> bool:
    if get_origin(annotation) is Literal:
        return True
    if get_origin(annotation) in (Union, types.UnionType, list, tuple, dict, Sequence):
        return all(_may_come_from_a_file(part) for part in get_args(annotation) if part is not ...)
    return annotation in (bool, int, float, str, Path, type(None))


def _fits_type(value: object, annotation: Any) -> bool:
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return any(value == part and type(value) is type(part) for part in parts)
    if origin in (Union, types.UnionType):
        return any(_fits_type(value, part) for part in parts)
    if origin in (list, tuple, Sequence):
        kinds = [part for part in parts if part is not ...]
        return isinstance(value, list | tuple) and all(any(_fits_type(v, kind) for kind in kinds) for v in value)
    if origin is dict:
        return isinstance(value, dict) and all(
            _fits_type(k, parts[0]) and _fits_type(v, parts[1]) for k, v in value.items()
        )
    if annotation is float:
        return type(value) in (int, float)
    return type(value) is (str if annotation is Path else annotation)
