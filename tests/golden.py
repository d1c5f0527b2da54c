"""Access to a set of golden numbers: the folder of ``ICKD_GOLDEN``, by default ``../shared/golden``."""

from __future__ import annotations

import functools
import json
import os
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from torch import Tensor

MISSING = "no golden set: set ICKD_GOLDEN to its folder"


def golden_root() -> Path | None:
    """The folder of the set, or None where it is missing."""
    default = Path(__file__).resolve().parents[1] / ".." / "shared" / "golden"
    root = Path(os.environ.get("ICKD_GOLDEN") or default)
    return root.resolve() if (root / "index.json").is_file() else None


def golden_path(relative: str) -> Path:
    """A file of the set; skips the running test where the set is missing."""
    root = golden_root()
    if root is None:
        pytest.skip(MISSING)
    return root / relative


@functools.cache
def golden_index() -> dict[str, Any]:
    """The set's index.json; skips the running test where the set is missing."""
    index: dict[str, Any] = json.loads(golden_path("index.json").read_text())
    return index


def golden_params(*section: str) -> list[Any]:
    """The entries of a section, for ``parametrize``; ids are the entries' names.

    Args:
        section: keys that lead to the list of entries, such as ``"losses"`` or ``"models", "entries"``.
    """
    if golden_root() is None:
        return [pytest.param(None, id="missing", marks=pytest.mark.skip(reason=MISSING))]
    entries: Any = golden_index()
    for key in section:
        entries = entries[key]
    return [pytest.param(e, id=str(e.get("id") or e.get("name") or e.get("case"))) for e in entries]


@functools.cache
def _tensors(path: Path) -> dict[str, Tensor]:
    return load_file(path)


def tensor(reference: str) -> Tensor:
    """The tensor that a reference ``file.safetensors#name`` means (a copy)."""
    file, _, name = reference.partition("#")
    return _tensors(golden_path(file))[name].clone()
