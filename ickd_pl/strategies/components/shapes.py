"""Checks of the shapes of a loss's tensors.

Every message is one line: whose argument, what was expected, what came. ``owner`` is the loss's name in front.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from ickd_pl.errors import UserError

# Maps of several stages, or one alone.
Maps = Tensor | Sequence[Tensor]
# Name, value and form of a loss's argument, such as ("student", x, "B C H W"); see :func:`check_shapes`.
Named = tuple[str, Tensor, str]
NamedMaps = tuple[str, Maps, str]


def check_shapes(owner: str, *named: Named) -> None:
    """Raise :class:`UserError` where tensors have not the shapes that a loss expects of them, or do not agree.

    A form names the dimensions: what has one name must have one size, in all tensors. ``...`` at the end stands for
    any further dimensions, equal in all tensors with ``...``; ``*`` for any further ones that may differ.

    Args:
        owner: the loss, for the message.
        named: for example ``("student", x, "B C H W"), ("teacher", y, "B C' H' W'")``.
    """
    tensors = all(isinstance(x, Tensor) for _, x, _ in named)
    # A graph has no use for the cache.
    agree = _agree.__wrapped__ if torch.compiler.is_compiling() else _agree
    if not tensors or not agree(tuple([x.shape for _, x, _ in named]), tuple([form for _, _, form in named])):
        expected = " and ".join(f"{name} ({form.replace(' ', ', ').replace('*', '...')})" for name, _, form in named)
        came = " and ".join(str(tuple(x.shape)) if isinstance(x, Tensor) else type(x).__name__ for _, x, _ in named)
        raise UserError(f"{owner}: expected {expected}, got {came}")


@lru_cache(maxsize=256)  # a run asks the same in every step
def _agree(shapes: tuple[tuple[int, ...], ...], forms: tuple[str, ...]) -> bool:
    sizes: dict[str, object] = {}
    return all(_fits(tuple(shape), form.split(), sizes) for shape, form in zip(shapes, forms, strict=True))


def _fits(shape: tuple[int, ...], form: list[str], sizes: dict[str, object]) -> bool:
    """Whether a shape has a form, with the sizes that have names already; new names are added."""
    named = [name for name in form if name not in {"...", "*"}]
    if len(shape) < len(named) or (len(shape) > len(named) and named == form):
        return False
    parts: dict[str, object] = dict(zip(named, shape, strict=False))
    if form[-1] == "...":
        parts["..."] = shape[len(named) :]
    return all(sizes.setdefault(name, part) == part for name, part in parts.items())


def as_stages(owner: str, *maps: NamedMaps, least: int = 1) -> list[Sequence[Tensor]]:
    """Lists of a loss's maps, one per stage: a tensor alone is one stage.

    Args:
        owner: the loss, for the messages.
        maps: as in :func:`check_shapes`, with one tensor or several.
        least: how many stages there must be.

    Raises:
        UserError: the counts differ or are below ``least``, or the shapes of a stage do not agree.
    """
    lists = [[x] if isinstance(x, Tensor) else x for _, x, _ in maps]
    if not all(isinstance(stages, Sequence) for stages in lists):
        came = " and ".join(type(x).__name__ for _, x, _ in maps)
        raise UserError(f"{owner}: expected tensors or lists of tensors, got {came}")
    counts = [len(stages) for stages in lists]
    if counts[0] < least or len(set(counts)) > 1:
        names = ", ".join(name for name, _, _ in maps)
        enough = f"{least} stages or more, " if least > 1 or not counts[0] else ""
        raise UserError(f"{owner}: expected {enough}as many of each of {names}, got {' and '.join(map(str, counts))}")
    for number, tensors in enumerate(zip(*lists, strict=True), start=1):
        named = [(name, x, form) for (name, _, form), x in zip(maps, tensors, strict=True)]
        check_shapes(f"{owner}, stage {number}", *named)
    return lists
