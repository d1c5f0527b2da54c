"""Write a checkpoint's bytes to disk."""

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
    """Writes directly to the given path, without a temporary file elsewhere."""

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
    """Bypass Lightning's temporary file in TMPDIR, which may be on a smaller disk and survives a killed run."""
    original = strategy.checkpoint_io
    if type(original) is TorchCheckpointIO:  # otherwise the user has chosen it
        strategy.checkpoint_io = InPlace()
    try:
        yield
    finally:
        strategy.checkpoint_io = original
