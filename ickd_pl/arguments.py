"""Checks of the module's arguments that types cannot make."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ickd_pl.errors import UserError
from ickd_pl.strategies import LossStrategy


def above_zero(**values: float) -> None:
    """Raise :class:`UserError` for the first value that is not above 0."""
    for name, value in values.items():
        if not value > 0:
            raise UserError(f"{name}: expected a number above 0, got {value}")


def zero_or_more(**values: float) -> None:
    """Raise :class:`UserError` for the first value below 0."""
    for name, value in values.items():
        if not value >= 0:
            raise UserError(f"{name}: expected 0 or more, got {value}")


def check_lists(strategies: Any, milestones: Sequence[int]) -> None:
    """Raise :class:`UserError` where the methods are no list of methods, or the milestones do not rise."""
    given = list(strategies or []) if isinstance(strategies, list | tuple | type(None)) else [None]
    if not all(isinstance(strategy, LossStrategy | dict) for strategy in given):
        raise UserError(f"strategies: expected a list of methods such as [ICKD(), KD()], got {strategies!r}")
    for strategy in given:
        if isinstance(strategy, LossStrategy) and not strategy.weight >= 0:
            raise UserError(f"{type(strategy).__name__}: expected a weight of 0 or more, got {strategy.weight}")
        if isinstance(strategy, LossStrategy) and strategy.pretrain_epochs < 0:
            raise UserError(
                f"{type(strategy).__name__}: expected pretrain_epochs of 0 or more, got {strategy.pretrain_epochs}"
            )
    if list(milestones) != sorted(set(milestones)) or any(epoch < 1 for epoch in milestones):
        raise UserError(f"milestones: expected epochs from 1 in rising order, got {list(milestones)}")


def unique_names(strategies: Sequence[LossStrategy]) -> list[str]:
    """Log and adapter keys: each method's name, with a number from its second use on."""
    names = [strategy.name() for strategy in strategies]
    counts = [names[: i + 1].count(name) for i, name in enumerate(names)]
    return [name if count == 1 else f"{name}_{count}" for name, count in zip(names, counts, strict=True)]
