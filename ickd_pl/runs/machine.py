"""Where a run is computed: the device, the precision and the versions, as its record has them.

Torch is imported where it is needed: reading results does without, which saves seconds.
"""

from __future__ import annotations

import platform
from contextlib import suppress
from dataclasses import dataclass, replace
from importlib import metadata
from typing import TYPE_CHECKING, Any

from ickd_pl.version import __version__

if TYPE_CHECKING:
    import pytorch_lightning as pl
    import torch


@dataclass(frozen=True, kw_only=True)
class Piece:
    """A part of a run that was computed on one device, in one precision and with one set of versions.

    Attributes:
        first: its first epoch; main epochs count from 1, and the last first-stage epoch is 0.
        last: its last epoch; where the run was stopped within it, the next piece begins with the same one.
    """

    device: str
    precision: str
    versions: dict[str, str]
    first: int
    last: int


def here(trainer: pl.Trainer, epoch: int) -> Piece:
    """The piece of this process, which begins with an epoch."""
    return Piece(**where(trainer), versions=versions(), first=epoch, last=epoch)


def continued(pieces: list[Piece], now: Piece) -> list[Piece]:
    """The pieces of a run that goes on in a piece, which is a new one only where something differs."""
    if pieces and replace(pieces[-1], first=now.first, last=now.last) == now:
        return [*pieces[:-1], replace(pieces[-1], last=now.last)]
    return [*pieces, now]


def pieces_of(state: Any) -> list[Piece]:
    """The pieces in the state that a checkpoint stores; damaged ones are left out."""
    listed = state.get("pieces") if isinstance(state, dict) else None
    found = []
    for each in listed if isinstance(listed, list) else []:
        with suppress(TypeError, AttributeError):  # not a mapping, or with other names
            piece = Piece(**each)
            texts = [piece.device, piece.precision, *piece.versions, *piece.versions.values()]
            if {*map(type, texts)} == {str} and type(piece.first) is type(piece.last) is int:
                found.append(piece)
    return found


def versions() -> dict[str, str]:
    """Versions of everything that affects the results."""
    names = ("torch", "torchvision", "pytorch-lightning", "torchmetrics")
    return {
        "ickd_pl": __version__,
        "python": platform.python_version(),
        **{name: _version(name) for name in names},
    }


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:  # a build without a description of itself
        return "unknown"


def where(trainer: pl.Trainer) -> dict[str, str]:
    """Device and precision that the trainer actually uses: 16-mixed, for example, becomes bf16-mixed on a CPU."""
    return {"device": device_name(trainer.strategy.root_device), "precision": str(trainer.precision)}


def device_name(device: torch.device) -> str:
    """A readable name of a device."""
    import torch

    if device.type == "cuda":
        return f"cuda ({torch.cuda.get_device_name(device)})"
    return f"{device.type} ({platform.machine()}, {torch.get_num_threads()} threads)"
