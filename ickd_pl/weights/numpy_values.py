"""numpy's numbers and arrays in a file that torch reads: stand-ins for numpy's own functions, which are never called.

Training scripts store an accuracy or a learning rate as a numpy scalar beside the weights. Such a number is read as
Python's; an array is read over. No object of another type is made: a dtype of objects is refused.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np


class NotPlain(ValueError):
    """A numpy value that is neither a number nor a string."""


class PlainType:
    """A ``numpy.dtype`` of numbers or strings.

    Args:
        text: its name, such as ``f8``.
        align: unused.
        copy: unused.

    Raises:
        NotPlain: a dtype of anything else, such as objects.
    """

    def __init__(self, text: Any, align: Any = False, copy: Any = False) -> None:
        text = text.decode("latin1") if isinstance(text, bytes) else text
        if not isinstance(text, str) or not re.fullmatch(r"[biufcSU]\d{1,4}", text):
            raise NotPlain(f"a numpy value of type {ascii(text)[:40]}")
        self.dtype = np.dtype(text)

    def __setstate__(self, state: Any) -> None:
        order: Any = state[1].decode("latin1") if isinstance(state[1], bytes) else state[1]
        if order not in ("<", ">", "|", "=") or any(part is not None for part in state[2:5]):
            raise NotPlain("a numpy value of a type with fields")
        self.dtype = self.dtype.newbyteorder(order)


class ReadOver:
    """Stands for an array, whose numbers are not kept."""

    def __setstate__(self, state: Any) -> None:
        pass


def scalar(dtype: Any, data: Any = b"") -> Any:
    """The number or string, as Python's.

    Raises:
        NotPlain: anything else.
    """
    if not isinstance(dtype, PlainType) or not isinstance(data, bytes) or len(data) != dtype.dtype.itemsize:
        raise NotPlain("a numpy value that is not one number")
    return np.frombuffer(data, dtype.dtype)[0].item()


def array(*_: Any) -> ReadOver:
    """What stands for an array."""
    return ReadOver()


STAND_INS: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = [
    ReadOver,
    PlainType,
    (ReadOver, "numpy.ndarray"),
    (PlainType, "numpy.dtype"),
    *((scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
    *((array, f"numpy.{core}.multiarray._reconstruct") for core in ("core", "_core")),
]
"""For ``torch.serialization.safe_globals``: each with the name by which files ask for it, in numpy 1 and 2."""
