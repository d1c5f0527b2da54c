"""How a checkpoint's bytes get to the disk."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.plugins import TorchCheckpointIO
from pytorch_lightning.strategies import Strategy


class InPlace(TorchCheckpointIO):
    """Writes to the path that it is given, and nowhere else."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        content = io.BytesIO()
        torch.save(checkpoint, content)
        try:
            Path(path).write_bytes(content.getbuffer())
        except OSError as error:
            size = content.getbuffer().nbytes
            raise OSError(error.errno, f"{error.strerror} for a checkpoint of {size} bytes") from error


@contextmanager
def writing_in_place(strategy: Strategy) -> Iterator[None]:
    """Leave out Lightning's way through TMPDIR: it may be on a smaller disk, and keeps what a killed run wrote."""
    stock = strategy.checkpoint_io
    if type(stock) is TorchCheckpointIO:  # else it was chosen by the user
        strategy.checkpoint_io = InPlace()
    try:
        yield
    finally:
        strategy.checkpoint_io = stock
