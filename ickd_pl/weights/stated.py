"""What a weights file says about the network in it: its configuration, and the head by which it predicts."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from ickd_pl.checks import short
from ickd_pl.errors import UserError
from ickd_pl.weights.search import is_checkpoint

KEY = "config"
"""Key of the configuration in every exported file, as JSON (in a ``.pth`` as a dictionary)."""


class StatedHead(NamedTuple):
    """A head that a file names (see :class:`ickd_pl.models.deployed.Head`); it is checked where it is built.

    Attributes:
        adapter: in a checkpoint, key of the method's part that it is; empty in an exported file.
        spec: class and arguments.
    """

    adapter: str
    spec: dict[str, Any]


def metadata(path: Path) -> Any:
    """The configuration in a ``.safetensors`` file that was read already; None without one.

    Raises:
        UserError: it is not JSON.
    """
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        found: dict[str, str] = file.metadata() or {}
    if KEY not in found:
        return None
    try:
        return json.loads(found[KEY])
    except ValueError as error:
        raise UserError(f"expected JSON, got {found[KEY][:30]!r}") from error


def stated_head(path: str | Path, content: Mapping[str, Any]) -> StatedHead | None:
    """The head by which the student of a file predicts; None where it predicts by its own last layer.

    Args:
        path: of the file, for messages.
        content: of the file, as read.

    Raises:
        UserError: what the file says is damaged.
    """
    if is_checkpoint(content):
        extra = content["ickd_pl"]
        stated = extra.get("head") if isinstance(extra, Mapping) else None
    else:
        config = _config(path, content)
        # Others' files may have a configuration of their own.
        stated = config.get("head") if isinstance(config, Mapping) and "ickd_pl" in config else None
    if stated is None:
        return None
    adapter = stated.get("adapter", "") if isinstance(stated, Mapping) else None
    if type(adapter) is not str or not re.fullmatch(r"\w*", adapter) or (is_checkpoint(content) and not adapter):
        raise UserError(f"{path}: its head is damaged, {short(stated)}: get the file again")
    return StatedHead(adapter, {name: value for name, value in stated.items() if name != "adapter"})


def _config(path: str | Path, content: Mapping[str, Any]) -> Any:
    if Path(path).suffix != ".safetensors":
        return content.get(KEY)
    try:
        return metadata(Path(path))
    except UserError:
        return None


def as_deployed(content: Any, adapter: str) -> Any:
    """A checkpoint's content in which student and head are one network, under the keys of ``DeployedNet``."""
    if isinstance(content, dict):
        return {
            _deployed_key(key, adapter) if isinstance(value, Tensor) and isinstance(key, str) else key: as_deployed(
                value, adapter
            )
            for key, value in content.items()
        }
    return [as_deployed(value, adapter) for value in content] if type(content) in (list, tuple) else content


def _deployed_key(key: str, adapter: str) -> str:
    key = re.sub(r"(^|\.)student\.", r"\1student.net.", key, count=1)
    return re.sub(rf"(^|\.)adapters\.{adapter}\.", r"\1student.head.", key, count=1)
