"""What a result depends on, as hashes: the code that trains, the data, the teacher."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Iterable
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from ickd_pl.version import __version__

# Files of the package that take part in training and in counting what is right. Other commands, fetching, export and
# the report do not.
_TRAINING = (
    "checks.py",
    "seeding.py",
    "benchmark/cells.py",
    "benchmark/choose.py",
    "benchmark/plan.py",
    "data",
    "models",
    "runs/fit.py",
    "runs/pack_folder.py",
    "runs/run_folder.py",
    "strategies",
    "training",
    "weights/read.py",
)


class Identity(NamedTuple):
    """What results must share to stand in one table. The teacher's is None for a teacher itself."""

    code_hash: str
    data_hash: str
    teacher_hash: str | None


@cache
def code_hash() -> str:
    """SHA-256 over the package's files that take part in training, by name and content."""
    root = Path(__file__).resolve().parents[1]
    digest = hashlib.sha256()
    for place in _TRAINING:
        path = root / place
        for file in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
            digest.update(file.relative_to(root).as_posix().encode() + b"\0" + file.read_bytes() + b"\0")
    return digest.hexdigest()


def data_hash(data: Any) -> str:
    """SHA-256 over the images and labels that a run trains on and is evaluated on, in their order, and the constants
    that they are normalised with."""
    digest = hashlib.sha256()
    for split in ("train", data.eval_split, "test"):
        images, labels = data._part(split)
        _update(digest, ((f"{split} image", images), (f"{split} label", labels)))
    # Of all training images, also where a run sees a part of them.
    digest.update(repr((list(data.mean), list(data.std))).encode())
    return digest.hexdigest()


def network_hash(net: nn.Module) -> str:
    """SHA-256 over a network's weights and buffers by name, whatever file they came from."""
    digest = hashlib.sha256()
    _update(digest, sorted(net.state_dict().items()))
    return digest.hexdigest()


def _update(digest: Any, tensors: Iterable[tuple[str, Tensor]]) -> None:
    for name, tensor in tensors:
        whole = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {tuple(whole.shape)} {whole.dtype}".encode())
        digest.update(whole.reshape(-1).view(torch.uint8).numpy())


def versions() -> dict[str, str]:
    """Of everything that moves numbers."""
    return {
        "ickd_pl": __version__,
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in ("torch", "torchvision", "pytorch-lightning", "torchmetrics")},
    }


def where(trainer: pl.Trainer) -> dict[str, str]:
    """Device and precision as the trainer really has them: on a CPU 16-mixed, for one, becomes bf16-mixed."""
    return {"device": device_name(trainer.strategy.root_device), "precision": str(trainer.precision)}


def device_name(device: torch.device) -> str:
    """The device a run was on, as a person would name it."""
    if device.type == "cuda":
        return f"cuda ({torch.cuda.get_device_name(device)})"
    return f"{device.type} ({platform.machine()}, {torch.get_num_threads()} threads)"
