"""Checks of arguments that types cannot make: numbers of the module and of the methods, shapes of the losses' tensors.

Every message is one line: whose argument, what was expected, what came. ``owner`` is the object (or its name) in front.
"""

from __future__ import annotations

import inspect
import math
import types
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Union, get_args, get_origin, get_type_hints

from torch import Tensor

from ickd_pl.errors import UserError, near

if TYPE_CHECKING:
    from ickd_pl.strategies.base import LossStrategy

# Maps of several stages, or one alone.
Maps = Tensor | Sequence[Tensor]
# Name, value and form of a loss's argument, such as ("student", x, "B C H W"); see :func:`check_shapes`.
Named = tuple[str, Tensor, str]
NamedMaps = tuple[str, Maps, str]


# -- numbers -----------------------------------------------------------------------------------------------------------


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


def first_stage(owner: object, pretrain_epochs: object, pretrain_lr: object) -> None:
    """Raise :class:`UserError` where length or learning rate of a first stage cannot be; a rate of None can."""
    whole_number(owner, 0, pretrain_epochs=pretrain_epochs)
    if pretrain_lr is not None:
        above_zero(owner, pretrain_lr=pretrain_lr)


def _check(owner: object, values: dict[str, object], expected: str, fits: Callable[[Any], bool]) -> None:
    for name, value in values.items():
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or value in (math.inf, -math.inf) or not fits(value):  # NaN fits nothing
            raise UserError(f"{_name(owner)}.{name}: expected {expected}, got {value!r}")


def _name(owner: object) -> str:
    return owner if isinstance(owner, str) else type(owner).__name__


# -- the module's lists ------------------------------------------------------------------------------------------------


def check_lists(owner: object, strategies: Any, milestones: Any) -> None:
    """Raise :class:`UserError` where the methods are no list of methods, or the milestones do not rise.

    What every method has is checked again: a class of the user's own may not check it.
    """
    from ickd_pl.strategies.base import LossStrategy  # here, since the methods check their numbers with this file

    given = list(strategies or []) if isinstance(strategies, list | tuple | type(None)) else [None]
    if not all(isinstance(strategy, LossStrategy | dict) for strategy in given):
        raise UserError(
            f"{_name(owner)}.strategies: expected a list of methods such as [ICKD(), KD()], got {strategies!r}"
        )
    for strategy in given:
        if isinstance(strategy, LossStrategy):
            zero_or_more(strategy, weight=getattr(strategy, "weight", None))
            first_stage(strategy, strategy.pretrain_epochs, strategy.pretrain_lr)
    fits = isinstance(milestones, Sequence) and all(type(epoch) is int and epoch > 0 for epoch in milestones)
    if not fits or list(milestones) != sorted(set(milestones)):
        raise UserError(f"{_name(owner)}.milestones: expected epochs from 1 in rising order, got {milestones!r}")


def unique_names(strategies: Sequence[LossStrategy]) -> list[str]:
    """Log and adapter keys: each method's name, with a number from its second use on."""
    names = [strategy.name() for strategy in strategies]
    counts = [names[: i + 1].count(name) for i, name in enumerate(names)]
    return [name if count == 1 else f"{name}_{count}" for name, count in zip(names, counts, strict=True)]


# -- values that come from a file --------------------------------------------------------------------------------------


def plain(value: object) -> bool:
    """Whether a value is a number, a text, a truth value or None, or a list or mapping of those that names no class."""
    if isinstance(value, list | tuple):
        return all(map(plain, value))
    if isinstance(value, dict):
        return "class_path" not in value and all(type(key) is str and plain(value[key]) for key in value)
    return value is None or type(value) in (bool, int, float, str)


def plain_arguments(function: Callable[..., Any], values: object, where: str, instead: str) -> dict[str, Any]:
    """Arguments that come from a file, held to what the function says that it takes.

    A file may set numbers, texts and lists of them where the parameter's type is made of nothing else. What it gives
    for any other parameter could be taken for the name of a class, and is refused.

    Args:
        function: a class or function with annotated parameters.
        values: the arguments by name.
        where: the file and the part of it, for the message.
        instead: what the user can do, for the message.

    Raises:
        UserError: an unknown name, a parameter of another type, or a value that is not of the parameter's type.
    """
    if not isinstance(values, Mapping):
        raise UserError(f"{where}: expected arguments by name, got {short(values)}; {instead}")
    known = [name for name in inspect.signature(function).parameters if name != "self"]
    hints = _hints(function)
    for name, value in values.items():
        if name not in known:
            raise UserError(f"{where}: unknown setting {short(name)}: {near(str(name), known)}")
        if not _may_come_from_a_file(hints.get(name)) or not _fits_type(value, hints[name]):
            raise UserError(f"{where}.{name} is {short(value)}, which a file may not set; {instead}")
    return dict(values)


def short(value: object) -> str:
    """A value of a stranger's as one short line of printable characters, for a message."""
    text = ascii(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _hints(function: Callable[..., Any]) -> dict[str, Any]:
    try:
        return get_type_hints(inspect.getattr_static(function, "__init__") if isinstance(function, type) else function)
    except (NameError, TypeError, AttributeError):  # a name that only a type checker knows: nothing may be set then
        return {}


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


# -- tensors of a loss -------------------------------------------------------------------------------------------------


def check_shapes(owner: str, *given: Named) -> None:
    """Raise :class:`UserError` where tensors have not the shapes that a loss expects of them, or do not agree.

    A form names the dimensions: what has one name must have one size, in all tensors. ``...`` at the end stands for
    any further dimensions, equal in all tensors with ``...``; ``*`` for any further ones that may differ.

    Args:
        owner: the loss, for the message.
        given: for example ``("student", x, "B C H W"), ("teacher", y, "B C' H' W'")``.
    """
    tensors = all(isinstance(x, Tensor) for _, x, _ in given)
    if not tensors or not _agree(tuple([x.shape for _, x, _ in given]), tuple([form for _, _, form in given])):
        expected = " and ".join(f"{name} ({form.replace(' ', ', ').replace('*', '...')})" for name, _, form in given)
        came = " and ".join(str(tuple(x.shape)) if isinstance(x, Tensor) else type(x).__name__ for _, x, _ in given)
        raise UserError(f"{owner}: expected {expected}, got {came}")


@lru_cache(maxsize=256)  # a run asks the same in every step
def _agree(shapes: tuple[tuple[int, ...], ...], forms: tuple[str, ...]) -> bool:
    sizes: dict[str, object] = {}
    return all(_fits(tuple(shape), form.split(), sizes) for shape, form in zip(shapes, forms, strict=True))


def _fits(shape: tuple[int, ...], form: list[str], sizes: dict[str, object]) -> bool:
    """Whether a shape has a form, given the sizes that have names already; new names are added."""
    named = [name for name in form if name not in {"...", "*"}]
    if len(shape) < len(named) or (len(shape) > len(named) and named == form):
        return False
    parts: dict[str, object] = dict(zip(named, shape, strict=False))
    if form[-1] == "...":
        parts["..."] = shape[len(named) :]
    return all(sizes.setdefault(name, part) == part for name, part in parts.items())


def as_stages(owner: str, *given: NamedMaps, least: int = 1) -> list[Sequence[Tensor]]:
    """Lists of a loss's maps, one per stage: a tensor alone is one stage.

    Args:
        owner: the loss, for the messages.
        given: as in :func:`check_shapes`, with one tensor or several.
        least: how many stages there must be.

    Raises:
        UserError: the counts differ or are below ``least``, or the shapes of a stage do not agree.
    """
    lists = [[x] if isinstance(x, Tensor) else x for _, x, _ in given]
    if not all(isinstance(maps, Sequence) for maps in lists):
        came = " and ".join(type(x).__name__ for _, x, _ in given)
        raise UserError(f"{owner}: expected tensors or lists of tensors, got {came}")
    counts = [len(maps) for maps in lists]
    if counts[0] < least or len(set(counts)) > 1:
        names = ", ".join(name for name, _, _ in given)
        enough = f"{least} stages or more, " if least > 1 or not counts[0] else ""
        raise UserError(f"{owner}: expected {enough}as many of each of {names}, got {' and '.join(map(str, counts))}")
    for number, tensors in enumerate(zip(*lists, strict=True), start=1):
        named = [(name, x, form) for (name, _, form), x in zip(given, tensors, strict=True)]
        check_shapes(f"{owner}, stage {number}", *named)
    return lists
