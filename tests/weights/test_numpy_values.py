"""numpy's numbers in a file become Python's; nothing else of numpy's is made."""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np
import pytest
import torch

from ickd_pl import UserError
from ickd_pl.weights import read_file


@pytest.mark.parametrize(
    "value", [np.float64(1.5), np.float32(0.25), np.float16(2), np.int64(-3), np.uint8(7), np.bool_(True), np.str_("a")]
)
def test_scalars(value: Any) -> None:
    for old in (True, False):
        torch.save({"value": value}, "w.pth", _use_new_zipfile_serialization=old)
        read = read_file("w.pth")["value"]
        assert read == value.item() and type(read) is type(value.item())


def test_other_byte_orders_and_arrays() -> None:
    torch.save({"big": np.arange(3, dtype=">i4")[1], "array": np.arange(9.0), "args": argparse.Namespace(a=1)}, "w.pth")
    content = read_file("w.pth")
    assert content["big"] == 1 and not isinstance(content["array"], np.ndarray)


@pytest.mark.parametrize(
    "value", [np.array([{}], dtype=object), np.datetime64("2020-01-01"), np.zeros(2, dtype=[("a", "i4")])]
)
def test_objects_are_refused(value: Any) -> None:
    torch.save({"value": value}, "w.pth")
    with pytest.raises(UserError, match=r"w\.pth is refused: it holds a numpy value of type"):
        read_file("w.pth")
