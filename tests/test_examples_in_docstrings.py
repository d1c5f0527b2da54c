"""Examples in docstrings give what they say, and every method's loss has one."""

from __future__ import annotations

import doctest
from importlib import import_module

import pytest

from ickd_pl.strategies.base import discover


@pytest.mark.parametrize("method", sorted(discover()))
def test_examples_of_a_method(method: str) -> None:
    module = import_module(f"ickd_pl.strategies.{method}")
    assert ">>> " in (getattr(module, f"{method}_loss").__doc__ or ""), "give the loss an example"
    result = doctest.testmod(module)
    assert result.attempted >= 3 and result.failed == 0


@pytest.mark.parametrize("name", ["models.registry", "models.hooked"])
def test_examples_of_networks(name: str) -> None:
    result = doctest.testmod(import_module(f"ickd_pl.{name}"))
    assert result.attempted >= 2 and result.failed == 0
