"""Distillation methods, one file each. Every class found in this folder can be imported from here."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ickd_pl.strategies.base import LossStrategy, at_least_float32, discover, from_spec

if TYPE_CHECKING:

    def __getattr__(name: str) -> Any: ...


_classes = {cls.__name__: cls for cls in discover().values()}
globals().update(_classes)

__all__ = ["LossStrategy", "at_least_float32", "discover", "from_spec", *_classes]  # noqa: PLE0604
